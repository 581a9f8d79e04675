"""Reranking of a first stage's results by the model's scores."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Corpus


class Candidates(Section):
    """The results of a first stage, such as BM25 or an embedder."""

    path: str = Field(min_length=1)
    """A file of results: TREC's run format (`query Q0 passage rank score tag`), or rows with `query-id`, `corpus-id` and `score`.
    A local path or an fsspec URL.
    """


class Reranking(EvaluationTask):
    """How well the scores of a reranker order the candidates of each query.

    For models of method rerank and other cross-encoders. The metrics are those of trec_eval.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.reranking:RerankingEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.reranking"
    figures: ClassVar[tuple[str, ...]] = (
        "ndcg@10", "mrr@10", "map@100", "first_stage/ndcg@10", "first_stage/mrr@10",
    )  # fmt: skip
    ranks: ClassVar[bool] = True
    sources: ClassVar[tuple[str, ...]] = ("data", "candidates")

    name: Literal["reranking"]
    """Metrics: `ndcg@10`, `mrr@10` and `map@100`, and the first two of the candidates in their own order:
    `first_stage/ndcg@10` and `first_stage/mrr@10`.
    """

    data: Corpus
    """Queries, corpus and relevance judgments (qrels)."""

    candidates: Candidates | None = None
    """The candidates of each query, for a folder in the BEIR layout. Default: the best passages by BM25. In a file of rows, the
    candidates are the passages of the query's row, and the first stage is their order by BM25.
    """

    depth: int = Field(100, ge=1)
    """Candidates per query, at most: the best ones of the first stage."""
