"""The evaluation task `reranking`: how well a reranker's scores order the candidates of each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tailor.encode.pair_examples import text_of
from tailor.errors import ModelError
from tailor.evaluate.batches import RERANK, EvaluationBatch
from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.retrieval.candidates import by_bm25, check_candidates, read_candidates
from tailor.evaluate.retrieval.collection import Collection, check_collection, is_folder, read_collection
from tailor.evaluate.retrieval.metrics import relevance
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, Row, TaskEvaluator
from tailor.evaluate.tasks.retrieval import shortened
from tailor.layout import RERANKING
from tailor.spec.tasks.reranking import Reranking

PART = "pairs"
_BATCH = 256
"""Pairs of a batch, which a worker computes at once."""
SHOWN = 10
"""Passages of a query that reranking.jsonl keeps."""
_FIRST_STAGE = ("ndcg@10", "mrr@10")
_FIGURES = (*_FIRST_STAGE, "map@100")


class RerankingEvaluator(TaskEvaluator[Reranking]):
    def require(self) -> None:
        from tailor.artifacts.cross_encoder import require_package

        require_package(self.key)

    def check_model(self, model: EvaluatedModel) -> None:
        from tailor.artifacts.cross_encoder import find_cross_encoder
        from tailor.artifacts.find import refuse_reranker

        if model.is_adapter:
            refuse_reranker(model.artifact)
        if model.is_adapter or find_cross_encoder(model.artifact.url) is None:
            raise ModelError(
                f"{self.key}: reranking needs a model that scores pairs, and {model.ref.url} is none",
                hint="train one with method rerank, or use the task retrieval",
            )

    def preflight(self, rows: FirstRows) -> None:
        check_collection(self.spec.data, f"{self.key}.data", rows.count)
        if self.spec.candidates is not None:
            check_candidates(self.spec.candidates.path, f"{self.key}.candidates", rows.count)

    @cached_property
    def _collection(self) -> Collection:
        return read_collection(self.spec.data, f"{self.key}.data")

    @cached_property
    def _candidates(self) -> list[list[int]]:
        """For each query, its candidates by their index in the corpus, in the order of the first stage."""
        spec, collection = self.spec, self._collection
        if spec.candidates is not None:
            return read_candidates(spec.candidates.path, f"{self.key}.candidates", collection, spec.depth)
        own = None if is_folder(spec.data, self.key) else [list(grades) for grades in collection.grades]
        return by_bm25(collection, spec.depth, own)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        collection = self._collection
        pairs = [
            (_text(query), _text(collection.corpus[passage]))
            for query, own in zip(collection.queries, self._candidates, strict=True)
            for passage in own
        ]

        def batches(model: str, size: int) -> list[EvaluationBatch]:
            ranges = [range(at, min(at + _BATCH, len(pairs))) for at in range(0, len(pairs), _BATCH)]
            return [
                EvaluationBatch(model, PART, RERANK, tuple(one), tuple(pairs[number] for number in one))
                for one in ranges
            ]

        return TaskInputs(collection.queries, rows.tokenizer, batches)

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        computed = collected.grouped(PART, [len(own) for own in self._candidates])
        scores = [[score for score, _ in own] for own in computed]
        truncated = sum(was_cut for own in computed for _, was_cut in own)
        results: list[dict[str, float]] = []
        rows: list[tuple[Row, Row]] = []
        for number, (own, values) in enumerate(zip(self._candidates, scores, strict=True)):
            # Of equal scores, the first stage's order.
            order = sorted(range(len(own)), key=lambda at, values=values: -values[at])  # type: ignore[misc]
            grades = self._grades[number]
            found = relevance([own[at] for at in order], grades)
            first = relevance(own, grades)
            figures = {name: found[name] for name in _FIGURES}
            figures |= {f"first_stage/{name}": first[name] for name in _FIRST_STAGE}
            results.append(figures)
            rows.append(self._row(number, [(own[at], values[at]) for at in order[:SHOWN]], figures))
        names = results[0]
        figures = {name: mean([one[name] for one in results]) for name in names}
        return Outcome(figures, RERANKING, rows, data=truncated)

    @property
    def _grades(self) -> Sequence[Mapping[int, int]]:
        return self._collection.grades

    def _row(
        self, number: int, best: Sequence[tuple[int, float]], figures: Mapping[str, float]
    ) -> tuple[Row, Row]:
        corpus, grades = self._collection.corpus, self._grades[number]
        query = self._collection.queries[number]
        relevant = {corpus[at].id: grade for at, grade in grades.items() if grade > 0}
        found = [
            {
                "id": corpus[at].id,
                "score": score,
                "grade": grades.get(at, 0),
                "text": shortened(corpus[at].text),
            }
            for at, score in best
        ]
        return {"id": query.id, "query": query.text, "relevant": relevant}, {"found": found, **figures}

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """Number of pairs, of queries without candidates, and of truncated pairs for each model."""
        sizes = [len(own) for own in self._candidates]
        truncated = {model: outcome.data for model, outcome in outcomes.items()}
        return {"rows": {"pairs": sum(sizes), "without_candidates": sizes.count(0), "truncated": truncated}}


def _text(text: Any) -> str:
    return text_of((text.instruction, text.text))
