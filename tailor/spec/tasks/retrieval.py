"""Retrieval by the model's embeddings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Corpus


class Searched(Section):
    """What is searched, and the instructions before the texts."""

    data: Corpus
    """Queries, corpus and judgments."""

    query_instruction: str | None = None
    """Instruction of every query. Default: that of its row, where the rows have any."""

    corpus_instruction: str | None = None
    """Instruction of every passage. Default: that of its row, where the rows have any."""

    dimension: int | None = Field(None, ge=1)
    """Take the first so many numbers of each embedding, for models trained with `method.matryoshka`. Default: all."""


class Retrieval(Searched, EvaluationTask):
    """Whether a query's relevant passages are the nearest to it, for models that make embeddings; as trec_eval counts."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.retrieval:RetrievalEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.retrieval"
    figures: ClassVar[tuple[str, ...]] = (
        "recall@1", "recall@5", "recall@10", "recall@100", "ndcg@10", "mrr@10", "map@100",
    )  # fmt: skip
    embeds: ClassVar[bool] = True

    name: Literal["retrieval"]
    """Gives `recall@1`, `recall@5`, `recall@10`, `recall@100`, `ndcg@10`, `mrr@10` and `map@100`."""
