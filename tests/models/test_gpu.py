"""What only a GPU can show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tailor.models import attention
from tailor.models.documents import Documents
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.gpu


def test_the_variable_length_kernel_is_taken_and_right() -> None:
    cuda = torch.device("cuda")
    for size, group in ((64, 4), (128, 8), (256, 2)):
        for window, causal in ((False, True), (True, True), (False, False), (True, False)):
            assert attention._flash_is_right(cuda, torch.bfloat16, size, group, None, window, causal)
    torch.manual_seed(0)
    bounds = ((0, 5), (5, 70), (70, 200))
    offsets = torch.tensor([0, 5, 70, 200], dtype=torch.int32, device=cuda)
    documents = Documents(bounds, offsets, 130)
    parts = [torch.randn(1, heads, 200, 64, device=cuda, dtype=torch.bfloat16) for heads in (8, 2, 2)]
    fast, _ = attention.documents_attention(torch.nn.Module(), *parts, None, documents=documents)
    exact, _ = attention.documents_attention(
        torch.nn.Module(), *(part.float() for part in parts), None, documents=documents
    )
    assert (fast.float() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("quantize", [None, {"type": "nf4"}, {"type": "int8"}])
def test_a_gpu_gives_the_cpus_curve(tmp_path: Path, quantize: dict[str, str] | None) -> None:
    tokens = make_store(tmp_path / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30])
    model = tiny_llama(tmp_path / "model")
    sections = {"model": {"adapter": {"rank": 4}, "quantize": quantize}, "train": {"precision": "bf16"}}
    curves = []
    for name in ("cpu", "cuda"):
        host = PlainHost(device=torch.device(name))
        loop.run(make_plan(model, tokens, tmp_path / name, **sections), host)
        curves.append(host.losses())
    assert curves[1] == pytest.approx(curves[0], abs=0.05)
