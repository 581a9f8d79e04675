"""Text generation from token ids: one function for evaluation, `tailor generate` and `tailor chat`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tailor.errors import DataError
from tailor.models import prefix_lm
from tailor.models import rope as live_rope
from tailor.models.attention import stock_attention
from tailor.models.beacon import generation
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import base_of
from tailor.models.positions import positions_of

Ids = list[int]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: greedily.

    Above 0, the samples of a prompt depend only on `seed` and the prompt's number, so neither the batch size nor the other
    prompts of a batch change them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def draw(self, numbers: Sequence[int]) -> Draw | None:
        """The sampler of a batch of these prompts; None decodes greedily."""
        if self.temperature == 0:
            return None
        return Draw([(self.seed, number) for number in numbers], self.temperature, self.top_p)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    pad_id: int,
    batch_tokens: int | None = None,
    sampling: Sampling | None = None,
    numbers: Sequence[int] | None = None,
    on_token: Callable[[int], None] | None = None,
    exceed_positions: bool = False,
    prefill: int | None = None,
) -> list[Ids]:
    """Generate an answer to each prompt of token ids, in the order of the prompts, without the final stop token.

    model: a transformers model, or PEFT's wrapper of one. Its mode, its attention and torch's random state are
    restored afterwards.
    batch_tokens: maximum tokens of a batch, with padding and answers; a longer prompt is a batch of its own.
    sampling: None decodes greedily. numbers: of the prompts, for sampling; by default their indexes.
    on_token: called with each new token, stop tokens included; only for a single prompt.
    exceed_positions: generate past the model's maximum number of positions.
    prefill: read the prompts in chunks of this many tokens; a prefix LM reads them at once.
    Raises DataError when a prompt fills all positions of the model.
    """
    assert on_token is None or (len(prompts) == 1 and prompts[0])
    answers: list[Ids] = [[] for _ in prompts]
    numbers, sampling = range(len(prompts)) if numbers is None else numbers, sampling or Sampling()
    config = decoding_config(max_new_tokens, stop_ids, pad_id)
    with ready(model) as device, torch.no_grad():
        limit, beacons = None if exceed_positions else positions_of(model), beacons_of(base_of(model))
        if prefill is not None and not prefix_lm.is_enabled(base_of(model)):
            config.prefill_chunk_size = prefill
        if _follows_batch(base_of(model)):
            batch_size = 1
        lengths = [len(prompt) for prompt in prompts]
        if beacons is not None and not beacons.off:
            # Within one window no beacon is used: these prompts go through the batches below.
            for i in (i for i, n in enumerate(lengths) if n and n + max_new_tokens > beacons.spec.window):
                config.max_new_tokens = room(limit, lengths[i], max_new_tokens)
                options = functools.partial(_options, sampling.draw([numbers[i]]), on_token)
                out_ids = generation.answer(
                    base_of(model),
                    beacons,
                    prompts[i],
                    config=config,
                    stop_ids=stop_ids,
                    make_options=options,
                )
                answers[i], lengths[i] = before_stop(out_ids, stop_ids), 0
        for chosen in batches(lengths, batch_size, max_new_tokens, limit, batch_tokens):
            ids, mask = pad_left([prompts[i] for i in chosen], pad_id)
            config.max_new_tokens = room(limit, ids.shape[1], max_new_tokens)
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                **_options(sampling.draw([numbers[i] for i in chosen]), on_token),
            )
            for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
                answers[i] = before_stop(row, stop_ids)
    return answers


def _follows_batch(base: Any) -> bool:
    """Whether the other prompts of a padded batch change an answer.

    With dynamic NTK and LongRoPE, the longest row sets the RoPE frequencies of all rows. In MiniMax, whose first layer is a
    lightning attention without keys, transformers takes the length of the KV cache from that layer, so the mask of each
    decoding step has the wrong columns.
    """
    return live_rope.follows_length(base) or base.config.model_type == "minimax"


def batches(
    lengths: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
    positions: int | None,
    batch_tokens: int | None = None,
) -> Iterator[list[int]]:
    """The indexes of the prompts of each batch, shortest first, which keeps padding small. Empty prompts are left out.

    batch_tokens: as for `generate`.

    When the model's positions may end an answer early, a batch has prompts of one length only: a longer prompt would
    shorten the answers of the others.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    batch: list[int] = []
    for i in order:
        crowded = positions is not None and lengths[i] + max_new_tokens > positions
        full = len(batch) == batch_size
        if batch_tokens is not None:
            full |= (len(batch) + 1) * (lengths[i] + max_new_tokens) > batch_tokens
        if batch and (full or (crowded and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _options(draw: Draw | None, on_token: Callable[[int], None] | None) -> dict[str, Any]:
    """Further arguments of transformers' `generate`: the sampler and the streamer."""
    return {
        "logits_processor": [draw] if draw is not None else [],
        "streamer": _Streamer(on_token) if on_token is not None else None,
    }


class Draw:
    """A logits processor that samples the next token of each row with a random generator of that row.

    transformers samples all rows of a batch with one generator, so a row's sample would depend on the other rows. This
    sets the logits of all tokens but the sampled one to -inf, and greedy decoding then takes it. seeds: one per row.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], temperature: float, top_p: float) -> None:
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: float[B, V] -> the same with all tokens but the sampled ones at -inf."""
        # Relative to the largest one, or the quotients by a tiny temperature are infinite.
        exact = scores.double()  # [B, V]
        chances = ((exact - exact.amax(-1, keepdim=True)) / self._temperature).softmax(-1)  # [B, V]
        if self._top_p < 1:
            ordered, order = torch.sort(chances, dim=-1, descending=True, stable=True)
            # Keep the most probable tokens, up to and including the one that brings their sum to top_p.
            dropped = ordered.cumsum(-1) - ordered >= self._top_p  # [B, V], sorted by probability
            chances = chances.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0)
        # The cumulative sum follows the vocabulary's order, not the sorted one: rounding can swap two tokens of nearly
        # equal probability in a sort, which would change the sampled token.
        total = chances.cumsum(-1)  # [B, V]
        drawn = torch.tensor(
            [[generator.random()] for generator in self._generators], dtype=torch.float64
        )  # [B, 1]
        token = torch.searchsorted(total, drawn.to(total.device) * total[:, -1:], right=True)  # [B, 1]
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded token ids and attention mask, both int64[B, longest prompt]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id)  # [B, width]
    mask = torch.zeros_like(ids)  # [B, width]
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def before_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> Ids:
    """The ids before the first stop token."""
    stops = set(stop_ids)
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def room(positions: int | None, length: int, max_new_tokens: int) -> int:
    """The number of new tokens that fit after a prompt of `length` tokens. DataError when none fits."""
    if positions is not None and length >= positions:
        raise DataError(
            f"a prompt of {length} tokens leaves no room for an answer: the model has {positions} positions",
            hint="shorten the prompt",
        )
    return max_new_tokens if positions is None else min(max_new_tokens, positions - length)


def decoding_config(max_new_tokens: int, stop_ids: Sequence[int], pad_id: int) -> Any:
    """Settings of transformers' `generate` for greedy decoding, up to a stop token."""
    from transformers import GenerationConfig

    # transformers fills unset values from the model's generation_config.json, which may set a repetition penalty or
    # beams: so these are set here.
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


@contextmanager
def ready(model: Any) -> Iterator[torch.device]:
    """Put the model into evaluation mode, with an attention that supports KV caches and padding; restore it afterwards.

    Yields the model's device.
    """
    base = base_of(model)
    device = next(model.parameters()).device
    attention, was_training = base.config._attn_implementation, model.training
    stock = attention if attention in ("sdpa", "eager") else stock_attention(base)
    # torch.compile would recompile the decoder for every length of the KV cache.
    compiled = any(module._compiled_call_impl is not None for module in base.modules())
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        eager,
        prefix_lm.reading_prompts(base),
    ):
        base.set_attn_implementation(stock)
        model.eval()
        try:
            yield device
        finally:
            model.train(was_training)
            base.set_attn_implementation(attention)


class _Streamer:
    """Passes each new token to `on_token`. transformers calls `put` with the prompt first, which is skipped."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, ids: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token(int(ids.reshape(-1)[-1]))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by transformers at the end: nothing is buffered."""
