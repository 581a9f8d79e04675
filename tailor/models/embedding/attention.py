"""A decoder that reads texts in both directions, and the proof that it does.

transformers' decoders take `is_causal=False` in a call, so neither a copied model nor a changed configuration is
needed, and generation with the same model stays causal. Some architectures ignore the flag without a word, so it is
proven at load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from tailor.errors import ModelError
from tailor.models import attention as own
from tailor.models.causal import CausalModel
from tailor.models.documents import Layout, TokenBatch
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.settings import Attention, Window

LENGTHS = (9, 7)
"""Of the two probe texts, in tokens."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 8e-2}
"""Largest relative difference (of L2 norms) that rounding explains."""


def text_states(
    model: CausalModel, batch: TokenBatch, *, attention: Attention, window: Window = "keep"
) -> torch.Tensor:
    """Last hidden states of texts, [B, T, H]. In the rows layout each row is one text.

    window: what becomes of a sliding window in bidirectional attention: each token sees as far in both directions
    (keep), or the whole text (widen).
    """
    if attention == "causal":
        return model.hidden(batch)
    inputs = model.inputs(batch)
    if model.base.config._attn_implementation == own.NAME:
        inputs["widen_window"] = window == "widen"
    elif model.layout == "rows":
        inputs["attention_mask"] = _mask(model, batch, window)
    return model.base.get_decoder()(**inputs, is_causal=False).last_hidden_state


def check_attention(
    model: CausalModel, dtype: torch.dtype, *, attention: Attention, window: Window = "keep"
) -> None:
    """Prove on two texts that the model reads them as declared. dtype: of the arithmetic. ModelError where it does not.

    A token that changes must be felt by the token before it exactly when the attention is bidirectional, and never by
    the other text or through padding; and all must agree with the stock attention on each text alone.
    """
    problem = _problem(model, dtype, attention, window)
    if problem:
        config = model.base.config
        raise ModelError(
            f"method.attention: {type(model.base).__name__} ({config.model_type}) with {config._attn_implementation} "
            f"attention does not read texts as {attention} attention does: {problem}",
            hint="set method.attention: causal, or take another model"
            if attention == "bidirectional"
            else "set model.attention: eager, or take another model",
        )


@torch.no_grad()
def _problem(model: CausalModel, dtype: torch.dtype, attention: Attention, window: Window) -> str:
    texts = _texts(model)
    changed = [texts[0].copy(), texts[1]]
    changed[0][-1] = (changed[0][-1] + 1) % int(texts[0].max() + 1)

    def states(of: Sequence[np.ndarray], layout: Layout) -> list[torch.Tensor]:
        return _apart(
            text_states(model, _batch(of, layout, model.device), attention=attention, window=window), of
        )

    try:
        before, after = states(texts, model.layout), states(changed, model.layout)
        with _stock(model):
            alone = [states([text], "rows")[0] for text in texts]
    except (ValueError, TypeError, RuntimeError) as error:
        return f"it refuses: {(str(error) or type(error).__name__).splitlines()[0]}"
    felt = _distance(after[0][-2], before[0][-2])
    if attention == "bidirectional" and felt == 0:
        return "it ignores is_causal=False, and a token sees only those before it"
    if attention == "causal" and felt > _slack(model):
        return "a token sees the one after it"
    if _distance(after[1], before[1]) > _slack(model):
        return "one text changes another"
    worst = max(_distance(ours, stock) for ours, stock in zip(before, alone, strict=True))
    if worst > TOLERANCE[torch.float16 if _is_8bit(model) else dtype]:
        return f"texts together differ from each alone by {worst:.1%}"
    return ""


def _slack(model: CausalModel) -> float:
    """What a text may change of another: 8-bit layers choose columns, and mixtures cut products, over all rows of a call."""
    routed = any("experts" in name for name, _ in model.base.named_modules())
    return 0.1 if _is_8bit(model) else 1e-3 if routed else 0.0


def _is_8bit(model: CausalModel) -> bool:
    return bool(getattr(model.base, "is_loaded_in_8bit", False))


@contextmanager
def _stock(model: CausalModel) -> Iterator[None]:
    """transformers' own attention over padded rows."""
    chosen, layout = model.base.config._attn_implementation, model.layout
    stock = "eager" if chosen == "eager" else own.stock_attention(model.base)
    model.base.set_attn_implementation(stock)
    model.layout = "rows"
    try:
        yield
    finally:
        model.base.set_attn_implementation(chosen)
        model.layout = layout


def _mask(model: CausalModel, batch: TokenBatch, window: Window) -> torch.Tensor:
    """What keeps padding out. A mask of four dimensions is taken as it is by every layer, sliding or not."""
    real = batch.rows >= 0
    if window == "keep":
        return real.long()
    seen = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
    if model.base.config._attn_implementation == "sdpa":
        return seen
    dtype = model.base.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _texts(model: CausalModel) -> list[np.ndarray]:
    vocabulary = int(model.base.get_input_embeddings().weight.shape[0])
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocabulary, length) for length in LENGTHS]


def _batch(texts: Sequence[np.ndarray], layout: Layout, device: torch.device) -> TokenBatch:
    return lay_out_texts([(text, np.array([[0, len(text)]])) for text in texts], layout).to(device)


def _apart(states: torch.Tensor, texts: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """The states of each text, [n, H], out of a stream or out of rows."""
    if len(states) == len(texts):
        return [row[: len(text)] for row, text in zip(states, texts, strict=True)]
    lengths = [len(text) for text in texts]
    return list(states[0].split([*lengths, states.shape[1] - sum(lengths)]))[:-1]


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Relative, in L2."""
    left, right = left.float(), right.float()
    return float((left - right).norm() / right.norm())


__all__ = ["check_attention", "text_states"]
