"""Bases whose weights are stored quantized: what is computed from them, and what is written after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailor.artifacts.average import average
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.errors import ModelError
from tailor.export.usage import usage
from tailor.models.load import load_network
from tailor.plan import Plan
from tailor.plan.quantized import check
from tailor.spec.model import Model, Quantize
from tailor.store import Store, run_folder
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.quantized_bases import fp8_llama, mxfp4_gpt_oss, stored_by_bitsandbytes
from tests.helpers.stores import make_store

CPU = torch.device("cpu")
IDS = torch.arange(3, 40)[None]


def train(base: Path, run: Path, model: dict[str, Any]) -> tuple[Plan, list[float]]:
    tokens = make_store(run.parent / f"{run.name}-tokens", [20, 30, 40, 25] * 4)
    sections = {"optim": {"learning_rate": 2e-2}, "train": {"steps": 2}, "save": {"every": 2}}
    plan = make_plan(base, tokens, run, model=model, **sections)
    Store(str(run)).write_json("plan.json", plan.as_dict())
    host = PlainHost()
    loop.run(plan, host)
    return plan, host.losses()


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits.float()  # [1, T, V]


def ordinary(folder: Path) -> Any:
    """The model in `folder`, loaded by plain transformers. Its weights must be plain too."""
    from transformers import AutoModelForCausalLM

    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_card(model: dict[str, Any], adapter: Path, names: dict[str, Path]) -> Any:
    """The model that the code of a model card loads in float32. names: placeholders of the code -> paths."""
    text = usage(model, "adapter", None, converses=False).split("```python\n")[1].split("tokenizer =")[0]
    for name, path in {"PATH": adapter, **names}.items():
        text = text.replace(f'"{name}"', repr(str(path)))
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["model"].float().eval()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_stored_base_trains_as_one_that_is_quantized_when_loaded(tmp_path: Path, kind: Any) -> None:
    plain = tiny_llama(tmp_path / "plain", hidden_size=128)
    stored = stored_by_bitsandbytes(plain, tmp_path / "stored", kind)
    before = (stored / "model.safetensors").read_bytes()
    memory_of, expected = train(plain, tmp_path / "expected", {"quantize": {"type": kind}, "adapter": LORA})
    plan, losses = train(stored, tmp_path / "run", {"adapter": LORA})
    _, control = train(plain, tmp_path / "control", {"adapter": LORA})
    assert losses == expected
    assert losses != control, "the control: the plain weights have other losses"
    assert plan.memory.weights == memory_of.memory.weights
    assert (stored / "model.safetensors").read_bytes() == before

    merged = merge(str(tmp_path / "run"), str(tmp_path / "merged"))
    assert merged.figures.kl < 1e-6
    trained = logits(load_run(str(tmp_path / "run")).model)
    assert (logits(ordinary(tmp_path / "merged")) - trained).norm() < 1e-4 * trained.norm()
    base = load_network(Model(path=str(stored)), dtype=torch.float32, device=CPU)
    assert (logits(base) - trained).norm() > 1e-2 * trained.norm(), "the control: training changed the model"


@pytest.mark.parametrize("make", [fp8_llama, mxfp4_gpt_oss])
def test_dequantized_weights_are_those_of_the_format(tmp_path: Path, make: Any) -> None:
    folder, weights = make(tmp_path / "base")
    for dtype in (torch.float32, torch.bfloat16):
        network = load_network(Model(path=str(folder), dequantize=True), dtype=dtype, device=CPU)
        own = network.state_dict()
        for name, weight in weights.items():
            assert torch.equal(own[name], weight.to(dtype)), name
    assert not hasattr(network.config, "quantization_config")


@pytest.mark.parametrize("adapter", [LORA, None], ids=["adapter", "all weights"])
def test_a_dequantized_base_is_trained_and_saved_as_an_ordinary_model(tmp_path: Path, adapter: Any) -> None:
    base, _ = fp8_llama(tmp_path / "base")
    plan, _ = train(base, tmp_path / "run", {"dequantize": True, "adapter": adapter})
    trained = logits(load_run(str(tmp_path / "run")).model)
    original = logits(load_network(Model(path=str(base), dequantize=True), dtype=torch.float32, device=CPU))
    assert (original - trained).norm() > 1e-2 * trained.norm(), "the control: training changed the model"
    result = tmp_path / "run" / "model"
    if adapter is not None:
        assert json.loads((tmp_path / "run" / "adapter" / "base.json").read_text())["dequantize"] is True
        loaded = by_card(plan.model.model_dump(), tmp_path / "run" / "adapter", {"BASE": base})
        assert (logits(loaded) - trained).norm() < 1e-2 * trained.norm()
        result = tmp_path / "merged"
        assert merge(str(tmp_path / "run"), str(result)).figures.kl < 1e-6
    else:
        last = run_folder.latest_checkpoint(Store(str(tmp_path / "run")))
        average([str(last), str(last)], str(tmp_path / "averaged"))
        assert (logits(ordinary(tmp_path / "averaged")) - trained).norm() < 1e-4 * trained.norm()
    assert (logits(ordinary(result)) - trained).norm() < 1e-4 * trained.norm()


def test_a_base_is_dequantized_and_quantized_again(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    base, weights = fp8_llama(tmp_path / "base")
    spec = Model(path=str(base), dequantize=True, quantize=Quantize(double=False))
    network = load_network(spec, dtype=torch.float32, device=CPU)
    layers = {name: one for name, one in network.named_modules() if isinstance(one, Linear4bit)}
    assert len(layers) == 14
    for name, layer in layers.items():
        blocks = weights[f"{name}.weight"].reshape(-1, 64)
        assert torch.equal(layer.weight.quant_state.absmax, blocks.abs().amax(1))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(
    "adapter", [{"type": "loha"}, {"init": "pissa"}, {"init": "olora"}, {"init": "orthogonal"}]
)
def test_adapters_refused_on_a_quantized_base_are_refused_on_a_stored_one(kind: str, adapter: Any) -> None:
    settings = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}
    config = {"quantization_config": {"quant_method": "bitsandbytes", **settings[kind]}}
    with pytest.raises(ModelError, match=rf"not supported on a quantized base.*bitsandbytes, {kind}"):
        check(Model.model_validate({"path": "base", "adapter": adapter}), config)
    for allowed in (
        {"path": "base", "adapter": adapter, "dequantize": True},
        {"path": "base", "adapter": LORA},
    ):
        check(Model.model_validate(allowed), config)


def test_scales_that_are_missing_are_an_error(tmp_path: Path) -> None:
    mxfp4_gpt_oss(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.endswith("down_proj_scales")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    spec = Model(path=str(tmp_path), dequantize=True)
    with pytest.raises(ModelError, match="tensors of the quantization format are missing"):
        load_network(spec, dtype=torch.float32, device=CPU)
