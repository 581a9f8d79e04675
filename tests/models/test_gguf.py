"""Bases in `.gguf` files: the weights, the tokenizer, and everything that is made from them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.data.facts import data_facts
from tailor.encode.model_files import load_config
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.models import files
from tailor.models.load import load_network
from tailor.plan import build
from tailor.spec.model import Model, Quantize
from tailor.spec.recipe import Recipe
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.plans import CPU as HARDWARE
from tests.helpers.plans import LORA
from tests.helpers.stores import make_store
from tests.models.test_stored_quantized import by_card, logits

pytest.importorskip("gguf")
from tests.helpers.gguf_files import gguf_llama

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))


def q8_0(weight: torch.Tensor) -> torch.Tensor:
    """Own arithmetic of Q8_0: blocks of 32 weights, each with a scale in float16."""
    blocks = weight.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
    return ((blocks / scale).round() * scale.half().float()).reshape(weight.shape)


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "Q8_0"])
def test_the_weights_are_those_of_the_file(tmp_path: Path, quantized: bool) -> None:
    from safetensors.torch import load_file

    file, plain = gguf_llama(tmp_path, quantized=quantized)
    network = load_network(Model(path=str(file)), dtype=torch.float32, device=CPU)
    own = network.state_dict()
    for name, weight in load_file(plain / "model.safetensors").items():
        expected = q8_0(weight) if quantized and weight.ndim == 2 else weight
        assert torch.allclose(own[name], expected, rtol=1e-6, atol=1e-7), name
        assert not quantized or weight.ndim == 1 or not torch.equal(own[name], weight), "the control"
    assert own["model.norm.weight"].dtype == torch.float32
    halves = load_network(Model(path=str(file)), dtype=torch.bfloat16, device=CPU)
    assert {p.dtype for p in halves.parameters()} == {torch.bfloat16}
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.encode("abc") == [261, tokenizer.encode("c")[0]]
    assert tokenizer.template is not None


def test_a_run_on_a_file_is_that_on_its_folder(tmp_path: Path) -> None:
    file, plain = gguf_llama(tmp_path)
    tokens = make_store(tmp_path / "tokens", [20, 30, 40, 25] * 4)
    losses = {}
    for base in (file, plain):
        values = {
            "model": {"path": str(base), "adapter": LORA},
            "data": {"train": [{"path": "unused"}], "max_length": 64},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 2e-2, "schedule": "constant"},
            "train": {"precision": "fp32", "batch_size": 4, "micro_batch_size": 1, "steps": 3},
            "save": {"to": str(tmp_path / f"run-{base.suffix}")},
        }
        recipe = Recipe.model_validate(values)
        plan = build(
            recipe, data_facts(tokens, recipe), load_config(str(base)), HARDWARE, run_url=recipe.save.to
        )
        host = PlainHost()
        loop.run(plan, host)
        losses[base] = host.losses()
    assert losses[file] == pytest.approx(losses[plain], rel=1e-6)
    run = tmp_path / "run-.gguf"
    record = json.loads((run / "adapter" / "base.json").read_text())
    assert record["path"] == str(file)
    trained = logits(load_run(str(run)).model)
    loaded = by_card({"path": str(file)}, run / "adapter", {"FOLDER": tmp_path})
    assert (logits(loaded) - trained).norm() < 1e-5 * trained.norm()
    merged = merge(str(run), str(tmp_path / "merged"))
    assert merged.figures.kl < 1e-7
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "merged"))
    assert "weights.gguf" not in os.listdir(tmp_path / "merged")
    again = load_network(Model(path=str(tmp_path / "merged")), dtype=torch.float32, device=CPU)
    assert (logits(again) - trained).norm() < 1e-5 * trained.norm()

    other = bytearray(file.read_bytes())
    other[-64:] = bytes(64)
    file.write_bytes(other)
    with pytest.raises(ModelError, match="differ from those that the adapter was trained on"):
        load_run(str(run))


def test_a_file_is_quantized_when_loaded(tmp_path: Path) -> None:
    file, plain = gguf_llama(tmp_path)
    spec = Model(path=str(file), quantize=Quantize())
    network = load_network(spec, dtype=torch.float32, device=CPU)
    expected = load_network(spec.model_copy(update={"path": str(plain)}), dtype=torch.float32, device=CPU)
    assert torch.equal(logits(network), logits(expected))


def test_files_that_cannot_be_read_are_model_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown, _ = gguf_llama(tmp_path, architecture="rwkv7")
    with pytest.raises(ModelError, match=r"transformers cannot read the file.*rwkv7"):
        load_config(str(unknown))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(unknown.read_bytes()[:300])
    with pytest.raises(ModelError, match="transformers cannot read the file"):
        load_tokenizer(str(damaged))
    with pytest.raises(ModelError, match="No such file"):
        files.find_folder(str(tmp_path / "none.gguf"))
    assert not list((tmp_path / "cache" / "gguf").iterdir()), "nothing is left of a failed conversion"
    monkeypatch.setattr("tailor.encode.gguf.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'tailor\[gguf\]'"):
        load_config(str(unknown))
