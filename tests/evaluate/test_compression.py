"""The compression ratios in the results are those with which the sequences are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tailor.evaluate import compression, windows
from tailor.evaluate.batches import GENERATE, SCORE, EvaluationBatch
from tailor.evaluate.generation import generate
from tailor.evaluate.likelihood import likelihoods
from tailor.evaluate.rows import Scored
from tailor.evaluate.tasks.long_perplexity import READ
from tailor.evaluate.windows import Windows
from tailor.models.beacon.model import BeaconModel
from tailor.spec.suite import Decoding
from tests.helpers.beacons import network, with_beacons

TEXT = torch.randint(3, 261, (200,), generator=torch.Generator().manual_seed(3)).tolist()
NEW = 20


def read(model: BeaconModel, monkeypatch: pytest.MonkeyPatch, run: Any) -> list[int]:
    """The ratios of the windows that `run` compresses."""
    ratios, original = [], model.beacons.read_window

    def spy(ids: Any, memory: Any, ratio: int) -> Any:
        ratios.append(ratio)
        return original(ids, memory, ratio)

    with monkeypatch.context() as patch:
        patch.setattr(model.beacons, "read_window", spy)
        run()
    return ratios


@pytest.mark.parametrize("memory", [None, "window"])
@pytest.mark.parametrize("tokens", [10, 20, 60, 130, 200])
def test_ratios_are_those_of_the_reading(
    tokens: int, memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_beacons(network(max_position_embeddings=64), memory=memory)
    ids, spec = TEXT[:tokens], model.beacons.spec
    windowed = Windows(ids, tokens, max(tokens // 2, 1), prefix=())
    settings: dict[str, Any] = {"max_new_tokens": NEW, "stop_ids": [], "batch_size": 1, "pad_id": 0}
    runs: dict[Any, tuple[Any, Any]] = {
        GENERATE: (ids, lambda: generate(model.network, [ids], exceed_positions=True, **settings)),
        SCORE: (
            (scored := Scored(tuple(ids), ((1, tokens),))),
            lambda: likelihoods(model, [scored]),
        ),
        READ: (windowed, lambda: windows.losses(model, windowed)),
    }
    for computation, (item, run) in runs.items():
        batch = EvaluationBatch("m", "p", computation, (0,), (item,))
        (found,) = compression.taken(spec, 64, [batch], Decoding(max_new_tokens=NEW))
        assert found["sequences"] == 1
        assert found["longest"] == tokens
        assert set(read(model, monkeypatch, run)) == ({found["ratio"]} - {None}), computation.kind
    if tokens == 60:  # control: the rules differ
        other = spec.model_copy(update={"memory": None if memory else "window"})
        batch = EvaluationBatch("m", "p", SCORE, (0,), (Scored(tuple(ids), ((1, tokens),)),))
        assert compression.taken(other, 64, [batch], Decoding()) != compression.taken(
            spec, 64, [batch], Decoding()
        )
