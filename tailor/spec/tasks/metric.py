"""A metric that is a Python function of the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask


class Metric(EvaluationTask):
    """Scores by a function of your own. Its file is executed, with your rights, on the machine of the command."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.metric:MetricEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.metric"
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("function",)

    name: Literal["metric"]
    """Metrics: `metric/FUNCTION`, or `metric/KEY` for each key of the mapping that the function returns."""

    function: str = Field(min_length=1)
    """`FILE.py:FUNCTION`, a local file and a function in it. It is called as `function(answer, reference, row)`, where `row`
    is the row of the data file, and returns a number or a mapping of names to numbers; None leaves the row out.
    """

    def needs_trust(self) -> str | None:
        return f"runs the Python function {self.function}"

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        return ("metric",)
