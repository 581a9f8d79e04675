"""For methods that embed texts: the size of a chunk (texts per forward pass), and the memory of the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailor.plan.facts import DataFacts, ModelFacts
from tailor.plan.memory import Memory
from tailor.spec.methods.union import Method

SCORE_TILE_BYTES = 64 * 2**20
"""Size of a tile of the similarity matrix. Its gradient and its mask take about the same again, each."""


@dataclass(frozen=True)
class Chunks:
    """The size of a chunk, in texts or in tokens."""

    size: int | None
    """Texts per chunk, if the recipe sets it."""
    max_tokens: int
    """Otherwise tokens per chunk; 0 if no texts are embedded."""
    longest: int
    """Tokens of the largest chunks whose activations are kept at the same time."""


def chunks(
    method: Method,
    data: DataFacts,
    memory: Callable[[int], Memory],
    *,
    max_tokens: int,
    usable_bytes: float,
    previous: int | None,
) -> Chunks:
    """Choose chunks of at most `max_tokens` tokens, or fewer if these do not fit into `usable_bytes`.

    memory: forecast for a forward pass of a number of tokens. previous: the tokens per chunk of an earlier part of the
    run, which are kept.
    """
    embedding = method.embedding
    if embedding is None:
        return Chunks(None, 0, 0)
    if embedding.chunk_size is not None:
        texts = min(embedding.kept_chunks * embedding.chunk_size, data.texts_per_batch)
        return Chunks(embedding.chunk_size, 0, texts * data.longest_text)
    tokens = previous or max(max_tokens, data.longest_text)

    def at_once() -> int:
        all_texts = data.texts_per_batch * data.longest_text  # tokens, at most
        return max(min(embedding.kept_chunks * tokens, all_texts), data.longest_text)

    while previous is None and tokens > data.longest_text and memory(at_once()).peak > usable_bytes:
        tokens = max(data.longest_text, tokens // 2)
    return Chunks(None, tokens, at_once())


def embedding_bytes(method: Method, data: DataFacts, facts: ModelFacts) -> int:
    """Bytes of the embeddings of a batch with their gradients, and of the tiles of the similarity matrix."""
    embedding = method.embedding
    if embedding is None:
        return 0
    dimension = embedding.projection or facts.hidden
    scores = 4 * data.texts_per_batch**2 // (1 + embedding.group_size)
    return 4 * 4 * data.texts_per_batch * dimension + 3 * min(SCORE_TILE_BYTES, scores)
