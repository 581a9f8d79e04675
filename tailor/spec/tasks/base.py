"""What the rules, the reports and the evaluation know of every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tailor.spec.base import Section


class EvaluationTask(Section):
    """One task of an evaluation. A subclass has the key `name` with its registered name, then keys of its own."""

    if TYPE_CHECKING:
        name: str

    implementation: ClassVar[str]
    """`module:attribute` of its `tailor.evaluate.tasks.base.TaskEvaluator`, imported when an evaluation runs."""
    rules: ClassVar[str | None] = None
    """Module of the rules between its keys, with `findings(keys, key)`, `unused(keys, key)` or both; `key`: of the task."""
    figures: ClassVar[tuple[str, ...]] = ()
    """The figures that it always gives."""
    on_rows: ClassVar[bool] = False
    """It reads the evaluation rows (`data`, `limit`); other tasks bring rows of their own."""
    generates: ClassVar[bool] = False
    """It judges answers that are generated as `decoding` says."""
    greedy: ClassVar[bool] = False
    """It generates greedy answers whose length it chooses itself."""
    embeds: ClassVar[bool] = False
    """It embeds texts, which needs a model that makes embeddings."""
    ignores_beacons: ClassVar[str | None] = None
    """Why it cannot measure a model with activation beacons; None where it can."""
    sources: ClassVar[tuple[str, ...]] = ("data",)
    """Those of its keys, where present, whose `path` names rows: files, URLs or data sets."""
    folders: ClassVar[Mapping[str, str]] = {}
    """Its keys that name a local folder -> what reads that folder."""
    fields: ClassVar[tuple[str, ...] | None] = None
    """What it reads of a row of `data`, the keys of `data.columns`; None: whatever the rows have."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures that it gives with these keys. task: its plain values."""
        return cls.figures

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Names before the slash of figures `NAME/METRIC` whose metrics are known when the task has run."""
        return ()
