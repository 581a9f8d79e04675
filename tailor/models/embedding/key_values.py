"""Key-values of texts, from the forward pass that also embeds them (GritLM, arXiv 2402.09906).

A text's keys are those of its own positions, from 0. Shapes: see `tailor.models`; L layers, h key heads of size d.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.models import rope, visibility
from tailor.models.causal import CausalModel
from tailor.models.decoder import has_head
from tailor.models.documents import TokenBatch
from tailor.models.embedding.attention import padded_rows, text_output
from tailor.models.embedding.pooling import finish, pool
from tailor.models.embedding.settings import Embedding
from tailor.models.segments import learn_rules


@dataclass(frozen=True)
class KeyValues:
    """Of one text of n tokens, with its BOS, instruction and format."""

    ids: torch.Tensor
    """int64[n]"""
    keys: torch.Tensor
    """[L, h, n, d], in the dtype of the model."""
    values: torch.Tensor
    """[L, h, n, d]"""

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self, other: KeyValues) -> bool:
        """Whether the other ones can be of the same model: floats of the same layers, heads and sizes, none NaN."""
        pairs = ((self.keys, other.keys), (self.values, other.values))
        return all(
            theirs.is_floating_point()
            and theirs.shape == (*own.shape[:2], len(other), own.shape[3])
            and bool(theirs.isfinite().all())
            for own, theirs in pairs
        )

    def cpu(self) -> KeyValues:
        return KeyValues(*(part.cpu().contiguous() for part in (self.ids, self.keys, self.values)))


def require_key_values(model: CausalModel, tokens: int = 0) -> None:
    """ModelError for a model whose key-values cannot be used again in another sequence. tokens: of the longest one."""
    base, kind = model.base, type(model.base).__name__
    if not has_head(base):
        raise ModelError(f"{kind} is an encoder, which cannot generate from key-values")
    if rope.follows_length(base):
        raise ModelError(
            f"the key-values of {kind} cannot be used again: its RoPE frequencies depend on the length of the sequence"
        )
    with suppress(ValueError):  # without rules, which is reported below
        learn_rules(base)
    rules = [rule for rules in visibility.rules_of(base).values() for rule in rules.values()]
    reach = min((rule.reach for rule in rules if rule.reach), default=tokens)
    if not rules or tokens > reach:
        raise ModelError(
            f"the key-values of {kind} cannot be used again in a sequence of {tokens:,} tokens, because it attends to "
            f"{reach:,} tokens only"
            if rules
            else f"the key-values of {kind} cannot be used again: not all of its layers have attention"
        )


def embed_with_key_values(
    model: CausalModel, settings: Embedding, batch: TokenBatch
) -> tuple[torch.Tensor, list[KeyValues]]:
    """As `embedder.embed`, and the key-values of each text. batch: in the rows layout."""
    from transformers import DynamicCache

    assert batch.pool is not None
    assert batch.documents is None
    with padded_rows(model):
        cache: Any = DynamicCache()
        states = text_output(
            model,
            batch,
            attention=settings.attention,
            window=settings.window,
            use_cache=True,
            past_key_values=cache,
        ).last_hidden_state  # [B, T, H]
    lengths = (batch.token_document >= 0).sum(1).tolist()
    found = []
    for row, length in enumerate(lengths):
        keys, values = (
            torch.stack([getattr(layer, name)[row, :, :length] for layer in cache.layers])
            for name in ("keys", "values")
        )
        found.append(KeyValues(batch.input_ids[row, :length], keys, values))
    return finish(pool(states, batch.pool, settings.pooling), model.projection), found


def cache_of(parts: list[KeyValues], device: torch.device) -> Any:
    """A cache of transformers with the key-values of several texts, one after another, for one sequence."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(len(parts[0].keys)):
        keys, values = (
            torch.cat([getattr(part, name)[layer] for part in parts], dim=1)[None].to(device)
            for name in ("keys", "values")
        )  # [1, h, tokens of all parts, d] each
        cache.update(keys, values, layer)
    return cache
