"""Verifies the merge of a reranker: compares the scores of the merged model with those of base and adapter.

Both models compute in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailor.artifacts import verify
from tailor.artifacts.inputs import Source
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.encode.pair_examples import token_types
from tailor.encode.pair_template import PairTemplate
from tailor.encode.tokenizer import load_tokenizer
from tailor.models import scoring_head
from tailor.models.causal import base_of
from tailor.models.collator import lay_out_pairs
from tailor.models.load import DTYPES
from tailor.store import Store

TOLERANCE = 0.03
"""Largest allowed relative error of the scores, for an adapter whose own effect is much larger. As of embeddings."""
SHARE = 0.5
"""The error of a merge may be at most this share of the effect of the adapter's updates, without the head."""
NOISE = 1e-5
"""Error that is always allowed: another order of float32 sums can cause it."""

_LENGTH = 24
"""Tokens of a built-in text, so that a pair fits in any model."""
Pair = tuple[np.ndarray, np.ndarray]
"""Token ids and token types, int[n] each."""


@dataclass(frozen=True)
class ScoreFigures:
    """Measured differences between the scores of a merged model and of the trained one."""

    rows: str
    """Description of the compared pairs."""
    pairs: int
    error: float
    """Relative error ‖merged − trained‖ / ‖trained‖ of the pairs' scores."""
    max_difference: float
    """Largest absolute difference of a score."""
    adapter_error: float
    """The same relative error for the trained head on the base without the adapter's updates: the effect of these."""
    check: verify.Check = "scores"

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def lines(self) -> list[str]:
        """The result, for the user."""
        line = (
            f"verified on {self.rows}: relative error of the scores {self.error:.2e}, |Δscore| max {self.max_difference:.2e} "
            f"(the adapter's own effect: {self.adapter_error:.2e})"
        )
        return [line]

    def limit(self, tolerance: float | None) -> float:
        """The largest allowed relative error. tolerance: the user's own."""
        return tolerance if tolerance is not None else max(NOISE, min(TOLERANCE, SHARE * self.adapter_error))

    def refusal(self, tolerance: float | None, trained: str = "base and adapter as trained") -> str | None:
        """Why the result fails verification; None when it passes. trained: what it was compared with, for the message."""
        limit = self.limit(tolerance)
        if math.isfinite(self.max_difference) and self.error <= limit:
            return None
        return (
            f"its scores differ from those of {trained}: relative error {self.error:.2e} (limit {limit:.1e}), "
            f"|Δscore| up to {self.max_difference:.2e}"
        )


def by_scores(
    folder: Path, source: Source, adapter: SavedAdapter, names: dict[str, str], device: torch.device
) -> ScoreFigures:
    """Compare the scores of the merged model in `folder` with those of base and adapter as trained.

    One model is in memory at a time.
    """
    from tailor.artifacts.load import load_adapted

    trained = load_adapted(source.folder, source.url, source.base_record, source.spec, device)
    verify.in_float32(trained, DTYPES[source.base_record.dtype])
    pairs, what = pairs_of(folder, source.run)
    expected, base = scores_of(trained, pairs, device), without_updates(trained, pairs, device)
    del trained
    return figures(expected, base, scores_of(verify.load_merged(folder, source, device), pairs, device), what)


def figures(expected: torch.Tensor, base: torch.Tensor, found: torch.Tensor, what: str) -> ScoreFigures:
    """All float64[N]: the trained model's scores, those without the adapter's updates, and those to verify."""
    return ScoreFigures(
        what, len(expected), _error(found, expected), _largest(found - expected), _error(base, expected)
    )


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().nan_to_num(math.inf).max())


def scores_of(network: Any, pairs: Sequence[Pair], device: torch.device) -> torch.Tensor:
    """The scores, float64[N] on the CPU. Pairs are not batched, so there is no padding."""
    with torch.no_grad():
        batches = [lay_out_pairs([pair]).to(device) for pair in pairs]
        return torch.cat([scoring_head.scores(base_of(network), batch).double().cpu() for batch in batches])


def without_updates(network: Any, pairs: Sequence[Pair], device: torch.device) -> torch.Tensor:
    """As `scores_of`, of the base with the trained head: PEFT's own switch would also turn off the head."""
    with _updates_disabled(network):
        return scores_of(network, pairs, device)


@contextmanager
def _updates_disabled(network: Any) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(setattr, layer, "_disable_adapters", layer._disable_adapters)
            layer._disable_adapters = True
        yield


def pairs_of(folder: Path, run: Store) -> tuple[list[Pair], str]:
    """Pairs to compare on, and their description: of the run's rows, or built-in ones if its tokens are not available.

    folder: with the tokenizer.
    """
    examples, what = verify.examples_of(run)
    if examples:
        return [(one.input_ids, token_types(len(one.input_ids), one.spans)) for one in examples], what
    tokenizer = load_tokenizer(str(folder))
    template = PairTemplate.of(tokenizer)
    found = []
    texts = [tokenizer.encode(text)[:_LENGTH] for text in verify.TEXTS]
    for query, passage in itertools.permutations(texts, 2):
        ids, spans = template.pair(query, passage)
        found.append((ids, token_types(len(ids), np.array(spans))))
    return found, f"{len(found)} pairs of built-in texts"
