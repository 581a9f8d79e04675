"""TensorBoard event files in the run's folder: `tensorboard --logdir RUN`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.store import Periodic

if TYPE_CHECKING:
    from tailor.store import Store

FOLDER = "tensorboard"
FLUSH_SECONDS = 10
NOT_SCALARS = ("kind", "step", "time", "count")


class TensorBoard:
    """Scalars named `train/loss`, `evaluation/loss`, `generation/exact_match` … by step.

    The event writer needs a local file; for a remote run folder it is copied up every few seconds.
    """

    def __init__(self, run: Store, *, after_step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._remote = None if run.is_local else run.join(FOLDER)
        self._scratch = None if run.is_local else tempfile.TemporaryDirectory()
        if not after_step:
            run.remove(FOLDER)
        folder = Path(self._scratch.name) if self._scratch else run.local_path(FOLDER)
        # The purge step makes readers leave out what an interrupted run wrote after its last checkpoint.
        purge = after_step + 1 if after_step else None
        self._writer = SummaryWriter(
            str(folder),
            flush_secs=FLUSH_SECONDS,
            purge_step=purge,
            filename_suffix=f".step-{after_step:08d}",  # the name's own clock counts in seconds
        )
        self._folder = folder
        self._step = after_step
        self._periodic = Periodic(self._copy, FLUSH_SECONDS) if self._remote else None

    def write(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind not in ("train", "evaluation", "generation"):
            return
        self._step = int(record.get("step", self._step))
        for key, value in record.items():
            # A step whose gradients overflowed in fp16 has a norm of infinity; a gap shows that better.
            if key not in NOT_SCALARS and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{key}", value, self._step)

    def close(self) -> None:
        self._writer.close()
        if self._periodic:
            self._periodic.close()
            self._copy()
        if self._scratch:
            self._scratch.cleanup()

    def _copy(self) -> None:
        assert self._remote is not None
        for file in self._folder.iterdir():
            self._remote.write_bytes(file.name, file.read_bytes())
