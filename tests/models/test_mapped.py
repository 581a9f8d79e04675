"""What of a mapped weight file is released after loading: all pages of converted weights, and no page of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.models import mapped
from tailor.models.load import load_network
from tailor.spec.model import Model
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import tiny_llama

pytestmark = pytest.mark.skipif(not mapped.MAPS.exists(), reason="only Linux lists the mappings of a process")
IDS = torch.arange(3, 40)[None]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MIXTURES["mixtral"].make(tmp_path_factory.mktemp("mixture"), **SIZES)


def load(path: Path, dtype: torch.dtype = torch.float32, **model: Any) -> Any:
    spec = Model.model_validate({"path": str(path), **model})
    return load_network(spec, dtype=dtype, device=torch.device("cpu")).eval()


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges of addresses that are released, which then really are."""
    ranges: list[tuple[int, int]] = []
    release = mapped._release

    def record(start: int, end: int) -> None:
        ranges.append((start, end))
        release(start, end)

    monkeypatch.setattr(mapped, "_release", record)
    return ranges


def bytes_of(ranges: list[tuple[int, int]]) -> int:
    return sum(max(0, end - start) for start, end in ranges)


def test_the_pages_of_stacked_experts_are_released(mixture: Path, released: list[tuple[int, int]]) -> None:
    network = load(mixture)
    experts = sum(4 * p.numel() for p in network.parameters() if p.ndim == 3)
    file = (mixture / "model.safetensors").stat().st_size
    assert file > bytes_of(released) > 0.99 * experts > 0.7 * file
    weights = [(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in network.parameters()]
    for start, end in released:
        assert not any(first < end and start < last for first, last in weights), (
            "a weight would be read again"
        )


def test_no_weight_changes(
    mixture: Path, released: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load(mixture)(IDS).logits
    assert released
    monkeypatch.setattr(mapped, "release_unused", lambda network: None)
    torch.testing.assert_close(ours, load(mixture)(IDS).logits, rtol=0, atol=0)


def test_the_pages_of_quantized_weights_are_released(tmp_path: Path, released: list[tuple[int, int]]) -> None:
    path = tiny_llama(tmp_path, **SIZES)
    network = load(path, quantize={"type": "nf4"})
    linear = 2 * (4 * 128 * 128 + 3 * 128 * 256)
    assert bytes_of(released) >= 0.9 * 4 * linear > 0.5 * (path / "model.safetensors").stat().st_size
    assert torch.isfinite(network(IDS).logits).all()


def test_nothing_is_released_of_a_file_that_is_used_whole(
    tmp_path: Path, released: list[tuple[int, int]]
) -> None:
    path = tiny_llama(tmp_path, **SIZES)
    load(path)
    assert bytes_of(released) < 0.05 * (path / "model.safetensors").stat().st_size, (
        "the header and the last page"
    )
    released.clear()
    load(path, torch.bfloat16)
    assert not released, "every weight was cast, so that the file is not mapped anymore"


def test_without_a_list_of_mappings_nothing_is_released(
    mixture: Path, released: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "MAPS", tmp_path / "maps")
    load(mixture)
    assert not released
