"""The settings that determine the batches of a run, together with the lengths of its examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tailor.spec.methods.base import StreamSizes
from tailor.spec.recipe import Recipe
from tailor.spec.train import DEFAULT_BATCH_SIZE


@dataclass(frozen=True)
class BatchSpec:
    """The settings of the batches. Exactly one of `batch_size`, `batch_tokens` and `streams` is set."""

    seed: int
    max_length: int
    pack: bool
    join: bool = False
    """Rows are cut from the concatenated examples (pretraining); they are not whole examples."""
    batch_size: int | None = None
    """Rows per batch."""
    batch_tokens: int | None = None
    """Tokens per batch."""
    weights: tuple[float, ...] = ()
    """The weight of each source; empty means that an epoch has each row once."""
    weight_by: Literal["rows", "tokens"] = "rows"
    """Whether a weight is the number of times that an epoch shows a source's rows, or its share of the tokens."""
    order: Literal["shuffled", "short_to_long"] = "shuffled"
    """The order of the batches of an epoch."""
    samples: tuple[int, ...] = ()
    """Groups of each source that an epoch draws, 0 for those that `weights` says; empty means 0 for each."""
    first_step: int = 0
    """The step at which these batches begin. A resumed run may have had other settings before it."""
    window: int | None = None
    """Tokens of a beacon window, else None. A batch has examples with the same number of windows."""
    streams: StreamSizes | None = None
    """If set, batches are `tailor.data.grit_batches.GritBatches`, and `batch_size` and `batch_tokens` are unused."""
    ranked: int | None = None
    """If set, batches are `tailor.data.ranking_batches.RankingBatches` with this number of passages per query."""


def batch_spec(recipe: Recipe, first_step: int = 0) -> BatchSpec:
    """The batch settings of a recipe. first_step: see `BatchSpec`."""
    method, train = recipe.method, recipe.train
    streams, weights = method.streams, tuple(source.weight for source in recipe.data.train)
    by_rows = recipe.data.weight_by == "rows"
    as_stored = all(weight == 1.0 for weight in weights) if by_rows else len(weights) == 1
    rows = None if train.batch_tokens else train.batch_size or DEFAULT_BATCH_SIZE
    return BatchSpec(
        seed=train.seed,
        max_length=recipe.data.max_length,
        pack=recipe.data.pack and not method.joins and streams is None and method.ranked_passages is None,
        join=method.joins,
        batch_size=rows if streams is None else None,
        batch_tokens=train.batch_tokens,
        weights=() if as_stored else weights,
        weight_by=recipe.data.weight_by,
        order=train.order,
        samples=tuple(counts) if any(counts := [source.samples or 0 for source in recipe.data.train]) else (),
        first_step=first_step,
        window=recipe.model.beacon.window if recipe.model.beacon else None,
        streams=streams,
        ranked=method.ranked_passages,
    )
