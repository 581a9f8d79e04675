"""Retrieval with the model's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Corpus


class Searched(Section):
    """A retrieval collection, and the instructions before its texts."""

    data: Corpus
    """Queries, corpus and relevance judgments (qrels)."""

    query_instruction: str | None = None
    """Instruction before every query. Default: the instruction in the query's row, if any."""

    corpus_instruction: str | None = None
    """Instruction before every passage. Default: the instruction in the passage's row, if any."""

    dimension: int | None = Field(None, ge=1)
    """Cut embeddings to the first N dimensions, for models trained with `method.matryoshka`. Default: all dimensions.
    """


class Retrieval(Searched, EvaluationTask):
    """Whether the passages nearest to a query are relevant to it.

    For models that make embeddings. The metrics are those of trec_eval.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.retrieval:RetrievalEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.retrieval"
    figures: ClassVar[tuple[str, ...]] = (
        "recall@1", "recall@5", "recall@10", "recall@100", "ndcg@10", "mrr@10", "map@100",
    )  # fmt: skip
    embeds: ClassVar[bool] = True

    name: Literal["retrieval"]
    """Metrics: `recall@1`, `recall@5`, `recall@10`, `recall@100`, `ndcg@10`, `mrr@10` and `map@100`."""

    dimensions: list[Annotated[int, Field(ge=1)]] = []
    """Also measure embeddings cut to these sizes: metrics such as `64/ndcg@10` and `64/recall@10`, the Matryoshka
    curve.
    """

    precisions: list[Literal["int8", "ubinary"]] = []
    """Also measure with passages stored as `tailor embed --dtype` does: metrics such as `int8/ndcg@10` and
    `int8/recall@10`. Queries keep their precision. int8 is calibrated on the queries and the first 512 passages.
    """

    variants: ClassVar[tuple[str, ...]] = ("ndcg@10", "recall@10")
    """Metrics of each size and precision."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        lists = [task.get(key) for key in ("dimensions", "precisions")]
        names = [name for own in lists if isinstance(own, list) for name in own]
        return (*cls.figures, *(f"{name}/{metric}" for name in names for metric in cls.variants))
