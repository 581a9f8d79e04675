"""Losses of long texts, against plain loops: every token is scored once, chunks do not change them, and means are per token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, ModelError
from tailor.evaluate import windows
from tailor.evaluate.figures import exponential
from tailor.evaluate.likelihood import scoring_model
from tailor.evaluate.tasks.long_perplexity import long_texts
from tailor.evaluate.windows import BUCKETS, Windows, losses, sliding_windows, token_losses
from tailor.models.collator import Document, collate
from tailor.models.load import load_network
from tailor.spec.model import Model
from tailor.spec.tasks.lengths import LongPerplexity
from tests.helpers.beacons import network as beacon_network
from tests.helpers.beacons import with_beacons
from tests.helpers.models import byte_tokenizer, tiny_llama

TEXT = torch.randint(5, 261, (150,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        tiny_llama(tmp_path_factory.mktemp("model")), dtype=torch.float32
    )


def by_hand(network: Any, before: list[int], token: int) -> float:
    """The loss of one token after the ones before it, in a pass of its own."""
    with torch.no_grad():
        return -float(network(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token])


@pytest.mark.parametrize(("length", "stride"), [(32, 16), (32, 1), (64, 63), (150, 75), (200, 100), (7, 3)])
def test_every_token_is_scored_once_with_enough_context(length: int, stride: int) -> None:
    scored = []
    for start, first, end in sliding_windows(len(TEXT), length, stride):
        assert end - start <= length
        assert start == 0 or first - start >= length - stride
        scored += range(first, end)
    assert scored == list(range(1, len(TEXT)))


def test_losses_match_a_plain_loop(network: Any) -> None:
    model, length, stride = scoring_model(network), 48, 16
    loss, tokens = [0.0] * BUCKETS, [0] * BUCKETS
    for start, first, end in sliding_windows(len(TEXT), length, stride):
        for at in range(first, end):
            part = (at - start) * BUCKETS // length
            loss[part] += by_hand(network, TEXT[start:at], TEXT[at])
            tokens[part] += 1
    found = losses(model, Windows(TEXT, length, stride))
    assert found.tokens == tokens
    assert sum(tokens) == len(TEXT) - 1
    assert found.loss == pytest.approx(loss, rel=1e-5)
    other = losses(model, Windows(TEXT, length, stride + 1))
    assert other.loss != pytest.approx(loss, rel=1e-3), "control: another stride gives other losses"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [23, None])
def test_every_window_starts_with_bos(network: Any, tmp_path: Path, bos: bool, stride: int | None) -> None:
    """The task's windows against a loop over the text's tokens, each after the ones that its window has before it."""
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path / "tokenizer", bos=bos)))
    text = "the cloth and the needle and the thread " * 2
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}))
    settings = {
        "name": "long_perplexity",
        "lengths": [24, 48],
        "data": {"path": str(tmp_path / "rows.jsonl")},
    }
    task = LongPerplexity.model_validate(settings | ({"stride": stride} if stride else {}))
    ((found,), _) = long_texts(task, "tasks[0].data", tokenizer)
    ids, start = tokenizer.encode(text), [1] * bos
    for window in found.windows:
        assert window.stride == (stride or window.length // 2)
        loss, count, done, room = 0.0, 0, 0, window.length - bos
        while done < len(ids):
            stop = min(done + window.stride if done else room, len(ids))
            for at in range(done, stop):
                before = start + ids[max(stop - room, 0) : at]
                if before:
                    loss, count = loss + by_hand(network, before, ids[at]), count + 1
            done = stop
        read = losses(scoring_model(network), window)
        assert sum(read.tokens) == count == len(ids) - (not bos)
        assert sum(read.loss) == pytest.approx(loss, rel=1e-5)
        sliced = losses(scoring_model(network), Windows([*window.prefix, *ids], window.length, window.stride))
        if bos:  # control: BOS in the first window only
            assert sum(sliced.loss) != pytest.approx(loss, rel=1e-3)
        else:
            assert sliced == read


def test_a_stride_that_a_window_without_bos_cannot_hold_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x" * 100}))
    task = LongPerplexity.model_validate(
        {
            "name": "long_perplexity",
            "lengths": [32],
            "stride": 31,
            "data": {"path": str(tmp_path / "rows.jsonl")},
        }
    )
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path / "tokenizer", bos=True)))
    long_texts(task, "tasks[0].data", tokenizer)
    tokenizer.prefix = [1, 1]
    with pytest.raises(DataError, match=r"tasks\[0\]\.stride: a window of 32 tokens starts with 2") as caught:
        long_texts(task, "tasks[0].data", tokenizer)
    assert caught.value.hint == "lower stride, or raise lengths"


@pytest.mark.parametrize("prefill", [1, 7, 64, 149])
def test_prefill_in_chunks_gives_the_same_losses(
    network: Any, prefill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scoring_model(network)
    monkeypatch.setattr(windows, "TILE", 13)
    whole = token_losses(model, TEXT, 40)
    parts = token_losses(model, TEXT, 40, prefill)
    assert whole.shape == parts.shape == (110,)
    assert (whole - parts).abs().max() < 2e-5
    alone = token_losses(model, TEXT[100:], 1)
    assert (alone - whole[-49:]).abs().max() > 0.1, "control: a part that doesn't see what came before"


def test_prefill_is_rejected_for_length_dependent_rope(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path, max_position_embeddings=64)
    spec = {"path": str(base), "rope": {"name": "dynamic", "factor": 4, "original_length": 64}}
    network = load_network(Model.model_validate(spec), dtype=torch.float32, device=torch.device("cpu"))
    model = scoring_model(network)
    with pytest.raises(ModelError, match="depend on the length of the whole text"):
        token_losses(model, TEXT, 1, prefill=32)
    whole = token_losses(model, TEXT, 1)
    assert (token_losses(model, TEXT[:70], 1) - whole[:69]).abs().max() > 0.01, "control: they do follow it"


def test_perplexity_is_weighted_by_token() -> None:
    figure = exponential([10.0, 900.0], [10.0, 300.0])
    assert figure.value == pytest.approx(math.exp(910 / 310))
    assert figure.value != pytest.approx((math.exp(1) + math.exp(3)) / 2, rel=0.1), "no mean over texts"


def test_beacons_read_a_long_text_by_their_windows() -> None:
    """The losses match those of training; with beacons disabled they are those of the base."""
    made = with_beacons(beacon_network())
    found = token_losses(made, TEXT, 1)
    ids = np.array(TEXT)
    logits = made.logits(collate([[Document(ids[:-1], ids[1:])]], "rows"))[0, : len(TEXT) - 1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT[1:]), reduction="none")
    assert (found - expected).abs().max() < 1e-4
    assert (token_losses(made, TEXT, 100) - found[99:]).abs().max() < 1e-5
    with made.beacons.disabled():
        base = token_losses(made, TEXT, 1)
    assert (found - base).abs().max() > 0.1, "control: the plain base"
