"""Bidirectional attention in a causal decoder, and the check that a model supports it.

transformers' decoders accept `is_causal=False` per call, so that the same model embeds bidirectionally and generates
causally, with no copy and no change to its config. Some architectures silently ignore the flag, so the effect is checked
at load. Attention that is bidirectional in one segment of a text is in `tailor.models.segments`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tailor.errors import ModelError
from tailor.models import attention as own
from tailor.models import visibility
from tailor.models.causal import CausalModel
from tailor.models.decoder import decoder_of
from tailor.models.documents import Layout, TokenBatch
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.settings import Window
from tailor.models.segments import Segment, as_mask, learn_rules, text_segments
from tailor.spec.methods.base import TextAttention

LENGTHS = (9, 7)
"""Lengths of the two test texts, in tokens. Both are longer than visibility.SHORT."""
START = 3
"""Tokens of the test texts that are not pooled: their instruction, for attention by segments."""
BIDIRECTIONAL_SEGMENT: dict[TextAttention, Segment] = {
    "bidirectional_instruction": "first",
    "bidirectional_text": "rest",
}
"""Attention -> the segment that is bidirectional, for attention by segments."""
_LAST, _TEXT, _INSTRUCTION = LENGTHS[0] - 1, START, START - 1
_EFFECTS: dict[TextAttention, dict[int, bool]] = {
    "bidirectional": {_LAST: True},
    "causal": {_LAST: False},
    "bidirectional_instruction": {_INSTRUCTION: True, _LAST: False, _TEXT: False},
    "bidirectional_text": {_LAST: True, _INSTRUCTION: False, _TEXT: False},
}
"""Attention -> position of a token of the first test text, and whether changing it must change the token before it."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 8e-2}
"""Maximum relative difference (L2 norms) that counts as rounding, by dtype."""


def text_states(
    model: CausalModel, batch: TokenBatch, *, attention: TextAttention, window: Window = "keep"
) -> torch.Tensor:
    """Last hidden states of texts, [B, T, H]. In the rows layout each row is one text.

    window: for a model with sliding-window attention, unless `attention` is causal: a token attends to the window on both
    sides (keep), or to the whole text (widen).
    """
    return text_output(model, batch, attention=attention, window=window).last_hidden_state


def text_output(
    model: CausalModel,
    batch: TokenBatch,
    *,
    attention: TextAttention,
    window: Window = "keep",
    **options: Any,
) -> Any:
    """The output of the decoder for texts. options: further arguments, such as a cache."""
    segment = BIDIRECTIONAL_SEGMENT.get(attention)
    if segment is not None:
        inputs = model.inputs(batch, text_segments(batch, segment), widen=window == "widen")
        return decoder_of(model.base)(**{**inputs, **options})
    inputs = {**model.inputs(batch), **options}
    if attention == "causal":
        return decoder_of(model.base)(**inputs)
    if model.base.config._attn_implementation == own.NAME:
        inputs["widen_window"] = window == "widen"
    elif model.layout == "rows":
        inputs["attention_mask"] = _mask(model, batch, window)
    return decoder_of(model.base)(**{**inputs, "is_causal": False})


def check_attention(
    model: CausalModel,
    dtype: torch.dtype,
    *,
    attention: TextAttention,
    window: Window = "keep",
    key: str = "method.attention",
) -> None:
    """Check on two short texts that the model reads texts with the given attention. dtype: of autocast. ModelError.

    Changing a token must change the token before it if and only if the attention is bidirectional there. It must not change
    the other text. And both texts must give the same as each alone with transformers' attention. key: of the recipe, for
    the message.
    """
    problem = _problem(model, dtype, attention, window)
    if problem:
        config = model.base.config
        raise ModelError(
            f"{key}: {type(model.base).__name__} ({config.model_type}) with {config._attn_implementation} "
            f"attention does not support {attention} attention: {problem}",
            hint="set model.attention: eager, or use another model"
            if attention == "causal"
            else f"set {key}: causal, or use another model",
        )


def check_prefix_lm(model: CausalModel, dtype: torch.dtype) -> None:
    """Check that the model reads prompts in both directions, in training and at the start of generation. ModelError."""
    for attention in ("bidirectional_instruction", "bidirectional"):
        check_attention(model, dtype, attention=attention, key="method.generative_attention")


@torch.no_grad()
def _problem(model: CausalModel, dtype: torch.dtype, attention: TextAttention, window: Window) -> str:
    """What is wrong, for a message; empty if nothing is."""
    texts = _texts(model)

    def states(of: Sequence[np.ndarray], layout: Layout) -> list[torch.Tensor]:
        return _apart(
            text_states(model, _batch(of, layout, model.device), attention=attention, window=window), of
        )

    def changed(at: int) -> list[np.ndarray]:
        other = texts[0].copy()
        other[at] = (other[at] + 1) % int(texts[0].max() + 1)
        return [other, texts[1]]

    try:
        if attention == "bidirectional" and window == "keep" and (layers := _causal_layers(model)):
            return f"with is_causal=False, {layers[0]} still attends to earlier tokens only"
        if attention in BIDIRECTIONAL_SEGMENT:
            learn_rules(model.base)
        # Longer than each window and chunk, which are shortened for the check.
        with visibility.shortened(model.base):
            before = states(texts, model.layout)
            after = {at: states(changed(at), model.layout) for at in _EFFECTS[attention]}
            with padded_rows(model):
                alone = [states([text], "rows")[0] for text in texts]
    except (ValueError, TypeError, RuntimeError) as error:
        return f"the forward pass fails: {(str(error) or type(error).__name__).splitlines()[0]}"
    for at, reaches in _EFFECTS[attention].items():
        change = _distance(
            after[at][0][at - 1], before[0][at - 1]
        )  # of the token before the one that was changed
        if reaches and change == 0:
            reason = "it ignores is_causal=False: " if attention == "bidirectional" else ""
            return f"{reason}tokens attend to earlier tokens only"
        if not reaches and change > _slack(model):
            return "tokens attend to later tokens"
        if _distance(after[at][1], before[1]) > _slack(model):
            return "a text changes the states of another text"
    worst = max(_distance(ours, stock) for ours, stock in zip(before, alone, strict=True))
    if worst > TOLERANCE[torch.float16 if _is_8bit(model) else dtype]:
        return f"the states of texts in one batch differ from those of each text alone by {worst:.1%}"
    return ""


def _causal_layers(model: CausalModel) -> list[str]:
    """Names of the attention modules that are causal in a call with `is_causal=False`."""
    try:
        rules = visibility.learned(model.base, causal=False)
    except ValueError:  # no masks of transformers: the check on texts decides
        return []
    return [name for name, rule in rules.items() if rule.causal]


def _slack(model: CausalModel) -> float:
    """How much a text may change another, relative: see `tailor.models.probe` on 8-bit layers and mixtures of experts."""
    routed = any("experts" in name for name, _ in model.base.named_modules())
    return 0.1 if _is_8bit(model) else 1e-3 if routed else 0.0


def _is_8bit(model: CausalModel) -> bool:
    return bool(getattr(model.base, "is_loaded_in_8bit", False))


@contextmanager
def padded_rows(model: CausalModel) -> Iterator[None]:
    """Context in which the model uses transformers' own attention over padded rows."""
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
    """Attention mask without padding: int64[B, T] to keep a sliding window, [B, 1, T, T] to widen it."""
    real = batch.token_document >= 0  # bool[B, T]
    if window == "keep":
        return real.long()
    return as_mask(model.base, real[:, None, None, :].expand(-1, 1, real.shape[1], -1))


def _texts(model: CausalModel) -> list[np.ndarray]:
    vocabulary = int(model.base.get_input_embeddings().weight.shape[0])
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocabulary, length) for length in LENGTHS]


def _batch(texts: Sequence[np.ndarray], layout: Layout, device: torch.device) -> TokenBatch:
    return lay_out_texts([(text, np.array([[START, len(text)]])) for text in texts], layout).to(device)


def _apart(states: torch.Tensor, texts: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """The states of each text, [n, H], from a stream [1, T, H] or from rows [B, T, H]."""
    if len(states) == len(texts):
        return [row[: len(text)] for row, text in zip(states, texts, strict=True)]
    lengths = [len(text) for text in texts]
    return list(states[0].split([*lengths, states.shape[1] - sum(lengths)]))[:-1]


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """L2 norm of the difference, relative to that of `right`."""
    left, right = left.float(), right.float()
    return float((left - right).norm() / right.norm())


__all__ = ["check_attention", "check_prefix_lm", "padded_rows", "text_output", "text_states"]
