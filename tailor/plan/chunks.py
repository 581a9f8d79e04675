"""Of a method that embeds: how many texts go through the model at once, and what their embeddings take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailor.plan.facts import DataFacts, ModelFacts
from tailor.plan.memory import Memory
from tailor.spec.methods.union import Method

SCORE_TILE_BYTES = 64 * 2**20
"""Of similarities; their gradients and masks take about as much again."""


@dataclass(frozen=True)
class Chunks:
    """size: texts, where the recipe says it. most: else their tokens, 0 where nothing is embedded. longest: tokens of the largest."""

    size: int | None
    most: int
    longest: int


def chunks(
    method: Method,
    data: DataFacts,
    memory: Callable[[int], Memory],
    *,
    tokens: int,
    room: float,
    kept: int | None,
) -> Chunks:
    """Chunks of at most `tokens` tokens, or fewer where they do not fit into `room` bytes.

    memory: the forecast for a pass of so many tokens. kept: what an earlier part of the run took.
    """
    embedding = method.embedding
    if embedding is None:
        return Chunks(None, 0, 0)
    if embedding.chunk_size is not None:
        texts = min(embedding.chunk_size, data.texts_per_batch)
        return Chunks(embedding.chunk_size, 0, texts * data.longest_text)
    most = kept or max(tokens, data.longest_text)
    while kept is None and most > data.longest_text and memory(most).peak > room:
        most = max(data.longest_text, most // 2)
    return Chunks(None, most, max(most, data.longest_text))


def embedding_bytes(method: Method, data: DataFacts, facts: ModelFacts) -> int:
    """Embeddings of all texts of a batch with their gradients, and tiles of similarities."""
    embedding = method.embedding
    if embedding is None:
        return 0
    dimension = embedding.projection or facts.hidden
    scores = 4 * data.texts_per_batch**2 // (1 + embedding.group_size)
    return 4 * 4 * data.texts_per_batch * dimension + 3 * min(SCORE_TILE_BYTES, scores)
