"""Base of the evaluation tasks' specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tailor.spec.base import Section


class EvaluationTask(Section):
    """Base of the tasks.

    A subclass has the key `name` with its registered name, then its own keys. The class variables are traits for the
    rules, reports and the evaluation.
    """

    if TYPE_CHECKING:
        name: str

    implementation: ClassVar[str]
    """`module:attribute` of its `tailor.evaluate.tasks.base.TaskEvaluator`, imported when an evaluation runs."""
    rules: ClassVar[str | None] = None
    """Module of the rules between its keys, with `findings(keys, key)`, `unused(keys, key)` or both. key: the key of
    the task, such as `tasks.0`.
    """
    figures: ClassVar[tuple[str, ...]] = ()
    """Metrics that it always reports."""
    definition: ClassVar[int] = 1
    """Version of what its metrics mean. Raised when the same model gets other values; results.json records it."""
    on_rows: ClassVar[bool] = False
    """Whether it reads the evaluation rows (`data`, `limit`). Other tasks have rows of their own."""
    generates: ClassVar[bool] = False
    """Whether it scores answers that are generated with the settings of `decoding`."""
    greedy: ClassVar[bool] = False
    """Whether it generates greedy answers and sets their maximum length itself."""
    binary: ClassVar[tuple[str, ...]] = ()
    """Metrics whose score of an answer is 0 or 1. With several samples per question they also report pass@k."""
    needs_comparison: ClassVar[bool] = False
    """Whether it compares the evaluated model with others, so that `compare` must name one."""
    embeds: ClassVar[bool] = False
    """Whether it needs a model that makes embeddings."""
    ranks: ClassVar[bool] = False
    """Whether it needs a model that scores pairs of texts: a reranker."""
    ignores_beacons: ClassVar[str | None] = None
    """Why it cannot evaluate a model with activation beacons. None if it can."""
    sources: ClassVar[tuple[str, ...]] = ("data",)
    """Its keys with a `path` to rows: files, URLs or datasets."""
    folders: ClassVar[Mapping[str, str]] = {}
    """Its keys that name a local folder -> what reads the folder, for messages."""
    code: ClassVar[tuple[str, ...]] = ()
    """Its keys that name a function in a local file, as `FILE.py:FUNCTION`."""
    fields: ClassVar[tuple[str, ...] | None] = None
    """Fields that it reads from a row of `data`, which are the possible keys of `data.columns`. None: all fields of
    the row.
    """

    def within(self, length: int) -> bool:
        """Whether some of its texts have at most `length` tokens, as far as its keys say."""
        return True

    def needs_trust(self) -> str | None:
        """What it does that only a file that the user names may ask for, such as running code. None for nothing."""
        return None

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that it reports with these keys. task: its plain values."""
        return cls.figures

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Prefixes of metrics `PREFIX/METRIC` that are known only after the task has run. task: its plain values."""
        return ()
