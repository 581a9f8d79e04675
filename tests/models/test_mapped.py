"""What of a mapped weight file is released after loading: all pages of converted weights, and no page of another one."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing._internal.two_tensor import TwoTensor

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


@pytest.fixture
def views(tmp_path: Path) -> Any:
    """A module with one weight of a mapped file, whose other two tensors are no weights."""
    tensors = {name: torch.full((64, 1024), float(value)) for value, name in enumerate("abc", 1)}
    save_file(tensors, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        module: Any = torch.nn.Module()
        module.weight = torch.nn.Parameter(file.get_tensor("b"))
        module.others = [file.get_tensor("a"), file.get_tensor("c")]
    return module


@pytest.mark.parametrize("written", ["nothing", "an attribute", "the weight"])
def test_a_page_that_was_written_to_is_kept(
    views: Any, released: list[tuple[int, int]], written: str
) -> None:
    tensors = [*views.others, views.weight.data]
    if written != "nothing":
        tensors[0 if written == "an attribute" else 2][30] = 9.0
    before = [tensor.clone() for tensor in tensors]
    mapped.release_unused(views)
    assert all(map(torch.equal, tensors, before))
    size = sum(tensor.nbytes for tensor in views.others)
    assert (bytes_of(released) > 0.9 * size) == (written == "nothing")


def test_a_mapping_that_is_split_inside_a_weight(views: Any, released: list[tuple[int, int]]) -> None:
    views.next = torch.nn.Parameter(
        views.others[1]
    )  # its start is in the last part, with the end of the weight
    first = views.weight.data_ptr()
    page = (first + views.weight.nbytes // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    assert not libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.MADV_DONTFORK)
    mapped.release_unused(views)
    assert bytes_of(released)
    assert not any(start < first + views.weight.nbytes and first < end for start, end in released)


@pytest.mark.parametrize("name", [b"latin-1 \xe9", "a line \u2028 and \x85".encode()])
def test_any_file_may_be_mapped_too(
    views: Any, released: list[tuple[int, int]], tmp_path: Path, name: bytes
) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_bytes(b"0" * mmap.PAGESIZE)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        mapped.release_unused(views)
    assert released


def test_a_tensor_without_an_address_is_no_obstacle(views: Any, released: list[tuple[int, int]]) -> None:
    wrapper: Any = TwoTensor
    views.wrapping = torch.nn.Parameter(wrapper(torch.ones(2), torch.ones(2)))
    with pytest.raises(RuntimeError):
        views.wrapping.untyped_storage().data_ptr()
    mapped.release_unused(views)
    assert released
