"""Tasks of MTEB, the Massive Text Embedding Benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask


class Mteb(EvaluationTask):
    """Tasks of MTEB (Massive Text Embedding Benchmark), with their own data. Needs the extra `mteb`, which downloads it.

    For models that make embeddings.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.mteb:MtebEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.mteb"
    embeds: ClassVar[bool] = True

    name: Literal["mteb"]
    """Metrics: `TASK/METRIC` with the main metric of each task, such as `SciFact/ndcg_at_10`: the mean over its
    splits and subsets, as MTEB computes it.
    """

    tasks: list[str] = Field(min_length=1)
    """Names of MTEB tasks, such as `SciFact`."""

    query_instruction: str | None = Field(None, min_length=1)
    """Instruction before queries, and before the texts of tasks without queries. Default: none."""

    corpus_instruction: str | None = Field(None, min_length=1)
    """Instruction before passages. Default: none."""

    instructions: dict[str, str] = {}
    """Task name -> its own `query_instruction`, for models that are trained with one instruction per task."""

    dimension: int | None = Field(None, ge=1)
    """Cut embeddings to the first N dimensions, for models trained with `method.matryoshka`. Default: all dimensions.
    """

    @classmethod
    def metric_groups(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        names = task.get("tasks")
        return tuple(dict.fromkeys(str(name) for name in names)) if isinstance(names, list) else ()
