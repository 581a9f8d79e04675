"""Perplexity by window length on real weights: short windows lack context, and not BOS.

TAILOR_REAL_MODEL is the folder of any language model: with a tokenizer that writes BOS (Gemma 3), and without (SmolLM2).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.encode.tokenizer import load_tokenizer
from tailor.evaluate.likelihood import scoring_model
from tailor.evaluate.windows import Windows, losses

REAL = os.environ.get("TAILOR_REAL_MODEL")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REAL is None, reason="TAILOR_REAL_MODEL names no model folder"),
]
TEXT = (Path(__file__).parents[3] / "docs" / "design" / "architecture.md").read_text()
LENGTHS = (64, 128, 384)


def perplexity(model: Any, window: Windows) -> float:
    found = losses(model, window)
    return math.exp(sum(found.loss) / sum(found.tokens))


def test_short_windows_do_not_lack_bos() -> None:
    assert REAL is not None
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(REAL)
    model = scoring_model(AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32))
    prefix = tuple(tokenizer.prefix)
    ids = tokenizer.encode(TEXT)[: max(LENGTHS) - len(prefix)]
    found, sliced = {}, {}
    for length in LENGTHS:
        stride = length // 2
        found[length] = perplexity(model, Windows(ids, length, stride, prefix=prefix))
        sliced[length] = perplexity(model, Windows([*prefix, *ids], length, stride))
    print(f"\n{REAL}: {len(prefix)} prefix tokens; every window {found}; first window only {sliced}")
    assert found[384] == pytest.approx(sliced[384], rel=1e-5), "one window is the whole text"
    assert found[64] < 3 * found[384], "half the context costs less than a factor of 3"
    if prefix:
        assert sliced[64] > 2 * found[64], "control: without BOS, short windows look far worse"
    else:
        assert found == sliced
