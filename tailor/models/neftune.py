"""NEFTune (arXiv 2310.05914): uniform noise on the embedded tokens of a document, in training.

Each number is drawn between -alpha / sqrt(L × H) and alpha / sqrt(L × H), where L is the number of tokens of the document
itself, not of a padded or packed row. The noise is a pure function of (seed, step, document), so that it does not depend on
the micro-batch size, the packing or the workers, and a resumed run draws the same. Shapes: see `tailor.models`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tailor.errors import ModelError

BLOCK = 1024
"""Tokens that are drawn at a time, each block with its own seed: a worker with a part of a long document (sequence
parallelism) draws the blocks of its part only."""


class NoisyDocument(NamedTuple):
    """A document of a micro-batch."""

    number: int
    """Identifies the document within a step (`collator.numbers_of`)."""
    start: int
    """Position of its first token in the flattened [B · T]. Negative if another worker has the start of the document."""
    length: int
    """Tokens of the whole document."""


def noisy_documents(
    numbers: Iterable[int], lengths: Sequence[Sequence[int]], width: int | None, before: int
) -> list[NoisyDocument]:
    """The documents of a micro-batch. lengths: tokens of the documents of each row.

    width: T of the rows layout, None in a stream. before: tokens of the stream on workers with earlier parts.
    """
    starts: list[int] = []
    at = -before
    for index, row in enumerate(lengths):
        if width is not None:
            at = index * width
        for length in row:
            starts.append(at)
            at += length
    flat = (length for row in lengths for length in row)
    return [NoisyDocument(*of) for of in zip(numbers, starts, flat, strict=True)]


@dataclass(frozen=True)
class Noise:
    """The noise of a micro-batch. seed: of the run; step: the training step, from 0."""

    alpha: float
    seed: int
    step: int
    documents: Sequence[NoisyDocument]

    def draw(self, tokens: int, width: int, device: torch.device) -> torch.Tensor:
        """float32[B · T, H], zeros for padding. tokens: B · T of this worker; width: H."""
        noise = torch.zeros(tokens, width, device=device)  # [B · T, H]
        generator = torch.Generator(device)
        for number, at, length in self.documents:
            limit = self.alpha / math.sqrt(length * width)
            for index, start in enumerate(range(0, length, BLOCK)):
                stop = min(start + BLOCK, length)
                first, last = max(at + start, 0), min(at + stop, tokens)
                if first >= last:
                    continue
                seed = np.random.SeedSequence((self.seed, self.step, number, index)).generate_state(1)
                generator.manual_seed(int(seed[0]))
                block = torch.empty(stop - start, width, device=device)  # [tokens of the block, H]
                block.uniform_(-limit, limit, generator=generator)
                noise[first:last] = block[first - at - start : last - at - start]
        return noise


@contextmanager
def noisy_embeddings(base: Any, noise: Noise | None) -> Iterator[None]:
    """Context in which a transformers model adds the noise to its embedded tokens. None: no noise.

    ModelError if a forward pass does not call the model's input embeddings once.
    """
    if noise is None:
        yield
        return
    calls = 0

    def add(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        drawn = noise.draw(output.shape[:-1].numel(), output.shape[-1], output.device)  # [B · T, H]
        return output + drawn.view_as(output).to(output.dtype)

    handle = base.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise ModelError(
            f"method.neftune_alpha: a forward pass of {type(base).__name__} calls its input embeddings {calls} times, not once",
            hint="remove method.neftune_alpha",
        )
