"""Answers of a model with activation beacons: transformers generates up to a window's end, then the window is compressed.

The memory stands in a stock cache, and a prompt as long as it makes transformers begin behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tailor.models.beacon.modules import Beacons
from tailor.models.beacon.windows import Memory
from tailor.plan import beacon


@torch.no_grad()
def answer(
    network: Any,
    beacons: Beacons,
    prompt: Sequence[int],
    *,
    config: Any,
    stop_ids: Sequence[int],
    make_options: Callable[[], dict[str, Any]],
) -> list[int]:
    """New tokens behind one prompt, at most `config.max_new_tokens`, with the stop token that ended them.

    The prompt's length decides the ratio of every window, those that the answer fills too.
    make_options: gives transformers' further arguments, for each window anew.
    """
    window = beacons.spec.window
    ids, memory, is_positive, done = list(prompt), Memory(), config.max_new_tokens, 0
    now, then = (beacon.windows_of(tokens, window) for tokens in (len(ids), len(ids) + is_positive))
    ratio = beacon.adapted(beacons.spec, now, beacons.limit, at_most=then)
    device = beacons.embedding.device
    while len(ids) - len(prompt) < is_positive:
        while len(ids) - done > window:  # the last window, even when it is full, has no beacons
            full = torch.tensor([ids[done : done + window]], device=device)
            memory, done = beacons.read_window(full, memory, ratio)[1], done + window
        behind = torch.tensor([[ids[0]] * memory.length + ids[done:]], device=device)
        # A window of n tokens predicts one more, with which the next one begins.
        config.max_new_tokens = min(is_positive - (len(ids) - len(prompt)), window - (len(ids) - done) + 1)
        out = network.generate(
            input_ids=behind,
            attention_mask=torch.ones_like(behind),
            past_key_values=memory.cache(),
            generation_config=config,
            **make_options(),
        )
        ids += out[0, behind.shape[1] :].tolist()
        if ids[-1] in stop_ids:
            break
    config.max_new_tokens = is_positive
    return ids[len(prompt) :]
