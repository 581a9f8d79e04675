"""Tasks of lm-eval, EleutherAI's evaluation harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.lengths import EFFECTIVE


class LmEval(EvaluationTask):
    """Tasks of lm-eval (EleutherAI's evaluation harness), with their own data and prompts. Needs the extra `lm-eval`."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.lm_eval:LmEvalEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.lm_eval"
    ignores_beacons: ClassVar[str | None] = (
        "lm-eval runs the base model without its beacons; remove the task lm_eval"
    )
    folders: ClassVar[Mapping[str, str]] = {"include": "lm-eval"}

    name: Literal["lm_eval"]
    """Metrics: `TASK/METRIC` for each metric of lm-eval that is a share or a perplexity, such as `arc_easy/acc_norm`.
    """

    tasks: list[str] = Field(min_length=1)
    """Names of lm-eval tasks and groups, such as `arc_easy`."""

    num_fewshot: int | None = Field(None, ge=0)
    """Few-shot examples before each question. Default: the number that the task defines."""

    limit: int | None = Field(None, ge=1)
    """Use only the first N rows of each task, of RULER's tasks those of each length. Default: all rows."""

    chat: bool = False
    """Use the model's chat template, with few-shot examples as turns. Published lm-eval results are usually without
    it.
    """

    metadata: dict[str, Any] = {}
    """Arguments of tasks that make or choose their own data, such as `max_seq_lengths: [4096, 8192]` of RULER. Such
    tasks also get the tokenizer of the evaluated model.
    """

    threshold: float = Field(EFFECTIVE, gt=0, le=1)
    """Score of an effective length, for tasks with a metric for each length (RULER): the results name the longest
    length whose score is at least this.
    """

    include: str | None = Field(None, min_length=1)
    """A local folder with your own task definitions (YAML). Python functions that they name are executed. Default:
    only the tasks of lm-eval.
    """

    def within(self, length: int) -> bool:
        lengths = self.metadata.get("max_seq_lengths")
        return not isinstance(lengths, list) or min(lengths, default=0) <= length

    def needs_trust(self) -> str | None:
        if self.include is None:
            return None
        return f"runs the task definitions of lm-eval in {self.include}, which may contain any code"

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        names = task.get("tasks")
        named = [str(name) for name in names] if isinstance(names, list) else []
        return tuple(dict.fromkeys(name for name in named if "/" not in name))
