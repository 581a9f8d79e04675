"""Whether a query's relevant passages are the nearest to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tailor.evaluate.batches import Embedded, EvaluationBatch, Result, embedding
from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import Subject
from tailor.evaluate.retrieval.collection import Collection, check_collection, read_collection
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.evaluate.retrieval.search import Found, Search
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, Row, TaskEvaluator
from tailor.layout import RETRIEVAL
from tailor.spec.tasks.retrieval import Retrieval

QUERIES, CORPUS = "queries", "corpus"
SHOWN_PASSAGES, SHOWN_LETTERS = 10, 200
"""What is kept of a query's best passages: how many, and how much of each text."""


class Searching(Collected):
    """Takes embeddings one batch at a time, for all of them may be more than fit."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search
        self.truncated = 0
        """Texts that were embedded without their ends."""

    def add(self, batch: EvaluationBatch, result: Result) -> None:
        assert isinstance(result, Embedded)
        add = self.search.add_queries if batch.part == QUERIES else self.search.add_passages
        add(batch.items, result.vectors)
        self.truncated += result.truncated


class RetrievalEvaluator(TaskEvaluator[Retrieval]):
    def check_model(self, model: Subject) -> None:
        require_embeddings(model.ref.embeds_like or model.artifact.url)

    def preflight(self, rows: FirstRows) -> None:
        check_collection(self.spec.data, f"{self.key}.data", rows.count)

    @cached_property
    def _collection(self) -> Collection:
        spec = self.spec
        return read_collection(spec.data, f"{self.key}.data", spec.query_instruction, spec.corpus_instruction)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        collection, dimension = self._collection, self.spec.dimension
        same_ids = self.spec.data.ignore_identical_ids
        return TaskInputs(
            collection.queries,
            rows.tokenizer,
            lambda model, size: [
                *embedding(model, QUERIES, collection.queries, dimension),
                *embedding(model, CORPUS, collection.corpus, dimension),
            ],
            collect=lambda: Searching(Search(collection, ignore_identical_ids=same_ids)),
        )

    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        assert isinstance(found, Searching)
        results = found.search.found()
        return Outcome(
            {name: mean([one.figures[name] for one in results]) for name in results[0].figures},
            RETRIEVAL,
            list(_rows(self._collection, results)),
            data=found.truncated,
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """What the search went through: passages in all and without text, and texts that were too long, by model."""
        truncated = {model: outcome.data for model, outcome in outcomes.items()}
        corpus = self._collection
        return {"rows": {"corpus": len(corpus.corpus), "blank": corpus.blank, "truncated": truncated}}


def _rows(collection: Collection, found: Sequence[Found]) -> Iterator[tuple[Row, Row]]:
    """Per query what was judged, and what was found: the best passages with their scores and grades."""
    for query, grades, own in zip(collection.queries, collection.grades, found, strict=True):
        passages = [
            {
                "id": collection.corpus[at].id,
                "score": score,
                "grade": grades.get(at, 0),
                "text": _short(collection.corpus[at].text),
            }
            for at, score in zip(own.passages[:SHOWN_PASSAGES], own.scores, strict=False)
        ]
        shared: Row = {"id": query.id, "query": query.text}
        if query.instruction:
            shared["instruction"] = query.instruction
        shared["relevant"] = {collection.corpus[at].id: grade for at, grade in grades.items() if grade > 0}
        yield shared, {"found": passages, **own.figures}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"
