"""The negatives of every row: by similarity of embeddings, by BM25, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.encode import bm25
from tailor.encode.records import Relevance
from tailor.evaluate.batches import Embedded, EvaluationBatch
from tailor.evaluate.mining.choice import Choice
from tailor.evaluate.mining.passages import Passages, excluded_pairs
from tailor.evaluate.progress import ResultParts
from tailor.evaluate.retrieval.ranking import TopK


@dataclass(frozen=True)
class Task:
    """What to choose from. Shapes: Q queries, P passages.

    positives: for each row, the indexes of its positive passages. candidates: the first passages, which may become negatives; the
    others are positives outside the corpus, which only have a score. excluded: int64[k, 2], pairs (row, passage) in the order of
    the rows.
    """

    queries: list[str]
    passages: list[str]
    positives: list[list[int]]
    candidates: int
    excluded: np.ndarray
    choice: Choice

    @classmethod
    def of(cls, records: Sequence[Relevance], passages: Passages, choice: Choice) -> Task:
        """The task of these rows. Adds their positives to the passages."""
        candidates = len(passages.texts)
        positives = [[passages.add(positive) for positive in record.positives] for record in records]
        excluded = excluded_pairs(records, passages)
        texts = [text for _, text in passages.texts]
        return cls([record.query[1] for record in records], texts, positives, candidates, excluded, choice)

    def excluded_of(self, row: int) -> np.ndarray:
        """int64[k]: the candidates that must not become negatives of a row."""
        first, last = np.searchsorted(self.excluded[:, 0], (row, row + 1))
        own = self.excluded[first:last, 1]
        return own[own < self.candidates]


def by_embeddings(task: Task, batches: Sequence[EvaluationBatch], parts: ResultParts) -> list[list[int]]:
    """The negatives of each row by similarity of the embeddings.

    batches: of the parts `queries` and `passages`, in this order. parts: their results, which are read twice: for the scores of the
    positives, then for all others. Only the queries, the positives and one batch are in memory.
    """
    scored = np.unique(np.concatenate([np.array(one) for one in task.positives]))  # [positive passages]
    queries = positives = np.zeros((0, 0), np.float32)
    for number, batch in enumerate(batches):
        found, items = _vectors(parts, number), np.array(batch.items)
        if not queries.size:
            queries = np.zeros((len(task.queries), found.shape[1]), np.float32)  # [Q, dimension]
            positives = np.zeros((len(scored), found.shape[1]), np.float32)  # [positive passages, dimension]
        if batch.part == "queries":
            queries[items] = found
        else:
            is_scored = np.isin(items, scored)
            positives[np.searchsorted(scored, items[is_scored])] = found[is_scored]
    lowest = [
        min((positives[np.searchsorted(scored, own)] @ query).tolist())
        for own, query in zip(task.positives, queries, strict=True)
    ]
    ceilings = task.choice.ceilings(np.array(lowest, np.float32))  # [Q]
    best = TopK(queries, task.choice.ranks[1], task.excluded, ceilings)
    for number, batch in enumerate(batches):
        if batch.part == "passages":
            items = np.array(batch.items)
            is_candidate = items < task.candidates
            best.add(items[is_candidate], _vectors(parts, number)[is_candidate])
    return [task.choice.chosen(ranked, row) for row, (ranked, _) in enumerate(best.ranked())]


def by_bm25(task: Task) -> list[list[int]]:
    """The negatives of each row by BM25, in this process."""
    index = bm25.Index(task.passages)
    found = []
    for row, query in enumerate(task.queries):
        scores = index.scores(query)  # [P]
        lowest = min(scores[task.positives[row]].tolist())
        found.append(task.choice.of_scores(scores[: task.candidates], task.excluded_of(row), lowest, row))
    return found


def at_random(task: Task) -> list[list[int]]:
    """Random negatives of each row."""
    return [
        task.choice.at_random(task.candidates, task.excluded_of(row), row) for row in range(len(task.queries))
    ]


def _vectors(parts: ResultParts, number: int) -> np.ndarray:
    """float32[items, dimension]: the embeddings of a batch."""
    result = parts.read(number)
    assert isinstance(result, Embedded)
    return result.vectors
