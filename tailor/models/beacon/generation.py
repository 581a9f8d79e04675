"""Generation with activation beacons: transformers generates up to the end of a window, then the window is compressed.

The memory is passed to transformers as a `DynamicCache`. transformers takes cached positions from the start of the prompt,
so that the prompt is padded with as many tokens as the memory has keys. Their ids are not read.
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
    """Generate the answer to one prompt: at most `config.max_new_tokens` token ids, including the stop token.

    The length of the prompt determines the compression ratio of every window, also of those that the answer fills.
    make_options: called for each window; returns further arguments of transformers' `generate`.
    """
    window = beacons.spec.window
    ids, memory, max_new_tokens, done = list(prompt), Memory(), config.max_new_tokens, 0
    now, later = (beacon.windows_of(tokens, window) for tokens in (len(ids), len(ids) + max_new_tokens))
    ratio = beacon.adapted(beacons.spec, now, beacons.limit, at_most=later)
    device = beacons.embedding.device
    while len(ids) - len(prompt) < max_new_tokens:
        while len(ids) - done > window:  # the last window has no beacons, even if it is full
            full = torch.tensor([ids[done : done + window]], device=device)  # int64[1, window]
            memory, done = beacons.read_window(full, memory, ratio)[1], done + window
        # int64[1, memory + n]
        padded = torch.tensor([[ids[0]] * memory.length + ids[done:]], device=device)
        # + 1: a full window predicts one more token, which is the first of the next window.
        config.max_new_tokens = min(max_new_tokens - (len(ids) - len(prompt)), window - (len(ids) - done) + 1)
        out = network.generate(
            input_ids=padded,
            attention_mask=torch.ones_like(padded),
            past_key_values=memory.cache(),
            generation_config=config,
            **make_options(),
        )
        ids += out[0, padded.shape[1] :].tolist()
        if ids[-1] in stop_ids:
            break
    config.max_new_tokens = max_new_tokens
    return ids[len(prompt) :]
