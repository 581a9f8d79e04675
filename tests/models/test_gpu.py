"""What only a GPU can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tailor.errors import ModelError
from tailor.models import attention, kernels
from tailor.models.documents import Documents
from tailor.plan import Hardware
from tailor.train import loop
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.gpu
CUDA = Hardware(device="cuda", memory_bytes=8 * 2**30, bf16=True)


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_liger_kernels_give_the_curve_without_them(
    tmp_path: Path, precision: str, adapter: dict[str, int] | None
) -> None:
    pytest.importorskip("liger_kernel")
    tokens = make_store(tmp_path / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30])
    model = tiny_llama(tmp_path / "model")
    curves = []
    for chosen in ("none", "liger"):
        host = PlainHost(device=torch.device("cuda"))
        sections = {"model": {"kernels": chosen, "adapter": adapter}, "train": {"precision": precision}}
        plan = make_plan(model, tokens, tmp_path / chosen, hardware=CUDA, **sections)
        loop.run(plan, host)
        curves.append([*host.losses(), *(record["loss"] for record in host.of("evaluation"))])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma2", "gemma3_text"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [True, False])
def test_liger_kernels_are_those_of_the_family(
    tmp_path: Path, family: str, dtype: torch.dtype, frozen: bool
) -> None:
    pytest.importorskip("liger_kernel")
    FAMILIES[family].make(tmp_path / family)
    config = AutoConfig.from_pretrained(tmp_path / family)
    kernels.prove(config, torch.device("cuda"), dtype, dtype if frozen else torch.float32)
    # Control: the kernels of an offset norm are refused.
    right = kernels.apply

    def shifted(base: Any) -> None:
        right(base)
        for module in base.modules():
            if hasattr(module, "offset"):
                module.offset += 0.5

    kernels.apply = shifted
    try:
        with pytest.raises(ModelError, match="its kernels give another"):
            kernels.prove(config, torch.device("cuda"), dtype, dtype if frozen else torch.float32)
    finally:
        kernels.apply = right
