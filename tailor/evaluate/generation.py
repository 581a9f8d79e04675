"""Answers from token ids: one function that generates, for evaluation, `tailor generate` and `tailor chat`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from tailor.errors import DataError
from tailor.models import rope as live_rope
from tailor.models.attention import stock_attention
from tailor.models.beacon import generation
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import base_of
from tailor.plan import beacon, rope

Ids = list[int]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    pad_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    on_token: Callable[[int], None] | None = None,
    beyond: bool = False,
    prefill: int | None = None,
) -> list[Ids]:
    """Answers to prompts of token ids, in their order, without the stop token that ended them.

    model: a transformers model, or PEFT's wrapper of one. Temperature 0 takes the likeliest token; above, the
    draws of a prompt are decided by `seed` and its number (by default its place among the prompts), so that
    neither the batch nor its other rows change them. `on_token` is given each new token as it comes, stop tokens
    too, for a batch of one prompt. `beyond`: go on beyond the positions that the model was made for. `prefill`: read
    the prompts in parts of so many tokens. The model's mode, attention and torch's random state are left as they were.
    """
    assert on_token is None or (len(prompts) == 1 and prompts[0])
    answers: list[Ids] = [[] for _ in prompts]
    numbers = range(len(prompts)) if numbers is None else numbers
    config = _config(max_new_tokens, stop_ids, pad_id)
    with ready(model) as device, torch.no_grad():
        limit, beacons = None if beyond else positions_of(model), beacons_of(base_of(model))
        config.prefill_chunk_size = prefill
        if live_rope.follows_length(base_of(model)):
            batch_size = 1  # rows of other lengths would change a row's frequencies
        lengths = [len(prompt) for prompt in prompts]
        if beacons is not None and not beacons.off:
            # Up to one window the model is the plain one, and prompts may share a batch.
            for i in (i for i, n in enumerate(lengths) if n and n + max_new_tokens > beacons.spec.window):
                config.max_new_tokens = _room(limit, lengths[i], max_new_tokens)
                draw = Draw([(seed, numbers[i])], temperature, top_p) if temperature > 0 else None
                options = functools.partial(_options, draw, on_token)
                found = generation.answer(
                    base_of(model),
                    beacons,
                    prompts[i],
                    config=config,
                    stop_ids=stop_ids,
                    make_options=options,
                )
                answers[i], lengths[i] = before_stop(found, stop_ids), 0
        for chosen in batches(lengths, batch_size, max_new_tokens, limit):
            ids, mask = pad_left([prompts[i] for i in chosen], pad_id)
            config.max_new_tokens = _room(limit, ids.shape[1], max_new_tokens)
            draw = Draw([(seed, numbers[i]) for i in chosen], temperature, top_p) if temperature > 0 else None
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                **_options(draw, on_token),
            )
            for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
                answers[i] = before_stop(row, stop_ids)
    return answers


def batches(
    lengths: Sequence[int], batch_size: int, max_new_tokens: int, positions: int | None
) -> Iterator[list[int]]:
    """Which prompts go through the model together, shortest first, so that little is padded. Empty prompts are left out.

    Where the model's positions end an answer early, only prompts of one length share a batch: a longer one would
    cut the answers of the others.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    batch: list[int] = []
    for i in order:
        crowded = positions is not None and lengths[i] + max_new_tokens > positions
        if batch and (len(batch) == batch_size or (crowded and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def positions_of(model: Any) -> int | None:
    """Positions that the model was made for, prompt and answer together; None where it says none."""
    limit = rope.positions(model.config.get_text_config().to_dict())
    beacons = beacons_of(base_of(model))
    if limit is None or beacons is None or beacons.off:
        return limit
    return beacon.context(beacons.spec, limit)


def _options(draw: Draw | None, on_token: Callable[[int], None] | None) -> dict[str, Any]:
    """What transformers' `generate` is told beside the prompts and the configuration."""
    return {
        "logits_processor": [draw] if draw is not None else [],
        "streamer": _Streamer(on_token) if on_token is not None else None,
    }


class Draw:
    """Draws the next token of each row, by one random number of the row's own generator per token.

    transformers would draw for the whole batch at once. This leaves the drawn token as the only possible one,
    for greedy decoding to take. seeds: one per row of the batch.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], temperature: float, top_p: float) -> None:
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: float[rows, vocabulary] -> the same with all but the drawn tokens at -inf."""
        chances = (scores.double() / self._temperature).softmax(-1)
        if self._top_p < 1:
            ordered, order = torch.sort(chances, dim=-1, descending=True, stable=True)
            # The likeliest tokens up to the one that brings their sum to top_p.
            beyond = ordered.cumsum(-1) - ordered >= self._top_p
            chances = chances.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
        # In the vocabulary's order: sorted, two tokens of nearly one chance could change places by rounding.
        total = chances.cumsum(-1)
        drawn = torch.tensor([[generator.random()] for generator in self._generators], dtype=torch.float64)
        token = torch.searchsorted(total, drawn.to(total.device) * total[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both int64[prompts, longest]: every prompt ends in the last column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def before_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> Ids:
    """The ids before the first stop token."""
    stops = set(stop_ids)
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def _room(positions: int | None, length: int, wanted: int) -> int:
    """New tokens that fit behind a prompt of `length` tokens. DataError when none does."""
    if positions is not None and length >= positions:
        raise DataError(
            f"a prompt of {length} tokens leaves no room for an answer: the model was made for {positions} positions",
            hint="shorten the prompt",
        )
    return wanted if positions is None else min(wanted, positions - length)


def _config(max_new_tokens: int, stop_ids: Sequence[int], pad_id: int) -> Any:
    from transformers import GenerationConfig

    # What is left unset here, transformers takes from the model's own generation_config.json.
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
    """The model in evaluation mode, with an attention that knows caches and padding; afterwards as it was."""
    base = base_of(model)
    device = next(model.parameters()).device
    attention, was_training = base.config._attn_implementation, model.training
    stock = attention if attention in ("sdpa", "eager") else stock_attention(base)
    # A compiled decoder would be compiled anew for every length of the cache.
    compiled = any(module._compiled_call_impl is not None for module in base.modules())
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), eager:
        base.set_attn_implementation(stock)
        model.eval()
        try:
            yield device
        finally:
            model.train(was_training)
            base.set_attn_implementation(attention)


class _Streamer:
    """Hands new tokens on, one by one. transformers gives it the prompt first."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, ids: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token(int(ids.reshape(-1)[-1]))
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""
