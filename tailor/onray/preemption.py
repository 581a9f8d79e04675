"""Preemption notices: a node of the run's workers will be taken away soon, for example a spot instance."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tailor.onray import nodes

POLL_SECONDS = 1.0
"""How often a worker asks Ray Train for a notice."""


class NoticeWatcher:
    """Asks Ray Train for a preemption notice, in a background thread of every worker.

    The question is a collective call of all workers, so it must not be asked between the steps: it takes as long as the
    slowest worker. Ray versions before 2.55 have no notices.
    """

    def __init__(self, ask: Callable[[], Any] | None = None) -> None:
        """`ask`: returns the notice or None. By default `ray.train.get_preemption_info`."""
        import ray.train

        self.notice: Any = None
        """Ray Train's PreemptionInfo, once a notice has arrived."""
        ask = ask or getattr(ray.train, "get_preemption_info", None)
        if ask is not None:
            threading.Thread(target=self._watch, args=(ask,), name="preemption", daemon=True).start()

    def _watch(self, ask: Callable[[], Any]) -> None:
        while self.notice is None:
            try:
                self.notice = ask()
            except Exception:  # the group is ending, or another worker died
                return
            time.sleep(POLL_SECONDS)


def notice_record(notice: Any) -> dict[str, Any]:
    """The status record of a notice. `preempted`: the names of the nodes, for the supervisor."""
    preempted = nodes.names(notice.preempted_node_ids)
    seconds = None if notice.deadline_ms is None else max(0.0, notice.deadline_ms / 1000 - time.time())
    when = "soon" if seconds is None else f"in {seconds:.0f} s"
    return {
        "kind": "status",
        "message": f"{preempted} will be preempted {when}: stopping after this step and saving a checkpoint",
        "preempted": preempted,
    }
