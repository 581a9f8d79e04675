"""Tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask


class LmEval(EvaluationTask):
    """Tasks of lm-eval (EleutherAI's harness), with their own data and prompts. Needs the extra `lm-eval`."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.lm_eval:LmEvalEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.lm_eval"
    ignores_beacons: ClassVar[str | None] = "lm-eval calls the plain model and would leave beacons out"
    folders: ClassVar[Mapping[str, str]] = {"include": "lm-eval"}

    name: Literal["lm_eval"]
    """Gives `TASK/METRIC` for each metric that is a share or a perplexity of its rows, such as `arc_easy/acc_norm`."""

    tasks: list[str] = Field(min_length=1)
    """lm-eval's names of tasks and groups, such as `arc_easy`."""

    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question. Default: the task's own number."""

    limit: int | None = Field(None, ge=1)
    """Only the first rows of each task."""

    chat: bool = False
    """Ask through the model's chat template, examples as turns. lm-eval's published figures are without."""

    include: str | None = Field(None, min_length=1)
    """A local folder with definitions of your own (YAML). Python functions that they name are run."""

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        names = task.get("tasks")
        named = [str(name) for name in names] if isinstance(names, list) else []
        return tuple(dict.fromkeys(name for name in named if "/" not in name))
