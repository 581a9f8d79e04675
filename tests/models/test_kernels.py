"""Kernels are taken only if a model with them is a model without them. The kernels themselves need a GPU (`test_gpu`)."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

from tailor.errors import ModelError
from tailor.models import kernels
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.models import load_model, tiny_llama

CPU = torch.device("cpu")


def right(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def wrong_offset(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight + 0.01, norm.variance_epsilon)


def wrong_gradient_of_the_input(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    scale = hidden.float().pow(2).mean(-1, keepdim=True).add(norm.variance_epsilon).rsqrt()
    return norm.weight * (hidden * scale.detach()).to(hidden.dtype)


def wrong_gradient_of_the_weight(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight.detach(), norm.variance_epsilon) + (
        0.0 * norm.weight
    )


def fails(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available\nmore lines")


def installed(monkeypatch: pytest.MonkeyPatch, forward: Any, *types: str) -> None:
    """A stand-in for the package that patches norms as it does: in the namespace of transformers and in the model."""

    def patch(base: Any, **options: bool) -> None:
        assert {name for name, value in options.items() if value} == {"rms_norm", "swiglu", "geglu"}
        modeling_llama.LlamaRMSNorm = torch.nn.Identity
        for module in base.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = MethodType(forward, module)

    modules = {name: ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers")}
    library = modules["liger_kernel.transformers.monkey_patch"] = ModuleType("monkey_patch")
    library.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(types)  # type: ignore[attr-defined]
    library._apply_liger_kernel_to_instance = patch  # type: ignore[attr-defined]
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def load(path: Path) -> Any:
    return load_model(
        Model(path=str(path), kernels="liger"),
        pack=True,
    )


def test_right_kernels_are_taken_and_other_models_keep_theirs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = modeling_llama.LlamaRMSNorm
    installed(monkeypatch, right, "llama")
    model = load(path)
    assert modeling_llama.LlamaRMSNorm is before
    norms = [module for module in model.modules() if type(module) is before]
    assert len(norms) > 3
    assert all(module.forward.__func__ is right for module in norms)
    for weights in (torch.float32, torch.bfloat16):
        kernels.prove(AutoConfig.from_pretrained(path), CPU, torch.bfloat16, weights)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (wrong_offset, "its kernels give another result"),
        (wrong_gradient_of_the_input, "its kernels give another gradient of"),
        (
            wrong_gradient_of_the_weight,
            "its kernels give another gradient of layers.0.input_layernorm.weight",
        ),
        (fails, "its kernels fail on cpu: no kernel image is available; set model.kernels: none"),
    ],
)
def test_wrong_kernels_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, forward: Any, message: str
) -> None:
    installed(monkeypatch, forward, "llama")
    with pytest.raises(ModelError, match=message):
        load(path)
    if forward is not wrong_offset:  # in bf16, 1 % is a rounding
        with pytest.raises(ModelError, match=message.split(" of")[0]):
            kernels.prove(AutoConfig.from_pretrained(path), CPU, torch.bfloat16, torch.bfloat16)


def test_a_package_without_the_model_or_no_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"needs the package liger-kernel .* pip install 'tailor\[liger\]'"):
        load(path)
    installed(monkeypatch, right, "qwen3")
    with pytest.raises(ModelError, match="LlamaForCausalLM: liger-kernel has no kernels for it"):
        load(path)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3"])
def test_the_compared_model_is_small_and_has_every_kind_of_layer(tmp_path: Path, family: str) -> None:
    FAMILIES[family].make(tmp_path / family)
    config = AutoConfig.from_pretrained(tmp_path / family)
    config.num_hidden_layers = 30
    config.layer_types = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 24
    small = kernels._small(config)
    assert (small.num_hidden_layers, set(small.layer_types)) == (6, set(config.layer_types))
    assert (config.num_hidden_layers, small.hidden_size) == (30, config.hidden_size)
    config.layer_types = ["full_attention"] * 30
    assert kernels._small(config).num_hidden_layers == 2
