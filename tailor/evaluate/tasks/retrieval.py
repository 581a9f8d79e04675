"""The evaluation task `retrieval`: how high the relevant passages of a query are ranked by embedding similarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tailor.evaluate.batches import Embedded, EvaluationBatch, Result, embedding
from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.retrieval.collection import Collection, check_collection, read_collection
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.evaluate.retrieval.precision import Coding
from tailor.evaluate.retrieval.search import Search, SearchResult
from tailor.evaluate.retrieval.variants import Coded, Cut, Variant
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, Row, TaskEvaluator
from tailor.layout import RETRIEVAL
from tailor.spec.tasks.retrieval import Retrieval

QUERIES, CORPUS = "queries", "corpus"
SHOWN_PASSAGES, SHOWN_CHARACTERS = 10, 200
"""What retrieval.jsonl keeps of a query's ranking: the number of passages, and the characters of each text."""


class CollectedSearch(Collected):
    """Ranks passages batch by batch, because the embeddings of a whole corpus may not fit into memory."""

    def __init__(self, search: Search, variants: Mapping[str, Variant]) -> None:
        super().__init__()
        self.search = search
        self.variants = variants
        self.truncated = 0
        """Number of texts that were truncated."""

    def add(self, batch: EvaluationBatch, result: Result) -> None:
        assert isinstance(result, Embedded)
        add = self.search.add_queries if batch.part == QUERIES else self.search.add_passages
        add(batch.items, result.vectors)
        for variant in self.variants.values():
            add = variant.add_queries if batch.part == QUERIES else variant.add_passages
            add(batch.items, result.vectors)
        self.truncated += result.truncated


class RetrievalEvaluator(TaskEvaluator[Retrieval]):
    def check_model(self, model: EvaluatedModel) -> None:
        require_embeddings(model.ref.embeds_like or model.artifact.url)

    def preflight(self, rows: FirstRows) -> None:
        check_collection(self.spec.data, f"{self.key}.data", rows.count)

    @cached_property
    def _collection(self) -> Collection:
        spec = self.spec
        return read_collection(spec.data, f"{self.key}.data", spec.query_instruction, spec.corpus_instruction)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        collection, dimension = self._collection, self.spec.dimension
        return TaskInputs(
            collection.queries,
            rows.tokenizer,
            lambda model, size: [
                *embedding(model, QUERIES, collection.queries, dimension),
                *embedding(model, CORPUS, collection.corpus, dimension),
            ],
            collect=self._collect,
        )

    def _collect(self) -> CollectedSearch:
        def search() -> Search:
            return Search(self._collection, ignore_identical_ids=self.spec.data.ignore_identical_ids)

        cuts = {str(size): Cut(search(), size, f"{self.key}.dimensions") for size in self.spec.dimensions}
        coded = {name: Coded(search(), Coding(name)) for name in self.spec.precisions}
        return CollectedSearch(search(), {**cuts, **coded})

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        assert isinstance(collected, CollectedSearch)
        results = collected.search.results()
        figures = {name: mean([one.figures[name] for one in results]) for name in results[0].figures}
        for label, variant in collected.variants.items():
            found = variant.search.results()
            figures |= {
                f"{label}/{name}": mean([one.figures[name] for one in found]) for name in self.spec.variants
            }
        return Outcome(
            figures,
            RETRIEVAL,
            list(_rows(self._collection, results)),
            data=collected.truncated,
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """Number of passages, of those without text, of judged ones that are missing, and of truncated texts for each model."""
        truncated = {model: outcome.data for model, outcome in outcomes.items()}
        corpus = self._collection
        rows = {"corpus": corpus.passages, "blank": corpus.blank, "truncated": truncated}
        return {"rows": rows | ({"missing": corpus.missing} if corpus.missing else {})}


def _rows(collection: Collection, found: Sequence[SearchResult]) -> Iterator[tuple[Row, Row]]:
    """For each query: its relevant passages, and the top-ranked passages with scores and grades."""
    for query, grades, own in zip(collection.queries, collection.grades, found, strict=True):
        passages = [
            {
                "id": collection.corpus[at].id,
                "score": score,
                "grade": grades.get(at, 0),
                "text": shortened(collection.corpus[at].text),
            }
            for at, score in zip(own.passages[:SHOWN_PASSAGES], own.scores, strict=False)
        ]
        shared: Row = {"id": query.id, "query": query.text}
        if query.instruction:
            shared["instruction"] = query.instruction
        shared["relevant"] = {collection.corpus[at].id: grade for at, grade in grades.items() if grade > 0}
        yield shared, {"found": passages, **own.figures}


def shortened(text: str) -> str:
    """The start of a text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
