"""The twin of a base: what stays of its architecture, and what gets small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.rehearse import twin
from tailor.spec.load import load_recipe
from tests.helpers.public_configs import BASES
from tests.rehearse import places
from tests.spec.helpers import GOOD, write

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def test_a_large_model_gets_small() -> None:
    small = twin.shrunk(LLAMA_70B, 64, 2)
    assert (small["num_hidden_layers"], small["hidden_size"], small["intermediate_size"]) == (2, 64, 128)
    assert small["num_attention_heads"] // small["num_key_value_heads"] == 8
    assert (small["head_dim"], small["vocab_size"]) == (128, 128256)
    assert small["max_position_embeddings"] == 131072
    assert LLAMA_70B["num_hidden_layers"] == 80


def test_each_kind_of_layer_stays() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config: dict[str, Any] = {**LLAMA_70B, "num_hidden_layers": 12, "layer_types": kinds * 2}
    small = twin.shrunk(config, 64, 2)
    assert (small["num_hidden_layers"], small["layer_types"]) == (6, kinds)


def test_a_head_dimension_that_the_class_derives_stays() -> None:
    """That of DeepSeek is its RoPE dimension, not the hidden size divided by the heads."""
    latent = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
    config = {**LLAMA_70B, **latent, "model_type": "deepseek_v3", "num_key_value_heads": 64}
    assert twin.shrunk(config, 64, 2)["head_dim"] == 64
    assert twin.shrunk(LLAMA_70B, 64, 2)["head_dim"] == 128  # the control: 8192 / 64


@pytest.mark.parametrize("base", BASES)
def test_every_shipped_base_has_a_small_one(base: str) -> None:
    """On the meta device: the class takes the sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = twin.shrunk(BASES[base][1], 64, 2)
    made = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(made)
    body = sum(p.numel() for name, p in network.named_parameters() if not _of_tokens(name))
    assert body < 10_000_000, "few weights beside the vocabulary"


def _of_tokens(name: str) -> bool:
    return any(part in name for part in ("embed", "wte", "lm_head", "wpe"))


def test_ranks_and_dimensions_fit(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("{path: org/base}", "{path: org/base, adapter: {rank: 100}}"))
    recipe = load_recipe(path, check_files=False)
    assert (twin.hidden(recipe), twin.layers(recipe)) == (128, 2)
    named = load_recipe(path, ["model.adapter.target_modules=[layers.31.q_proj]"], check_files=False)
    assert twin.layers(named) is None


def test_no_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places.make(tmp_path))
    (tmp_path / "base/model.safetensors").write_bytes(b"no weights")
    (tmp_path / "base/model.safetensors.index.json").write_text("{}")
    (tmp_path / "small").mkdir()
    assert "LlamaForCausalLM" in twin.make(load_recipe("lora.yaml"), tmp_path / "small")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "model.safetensors.index.json" not in names
    assert json.loads((tmp_path / "small/config.json").read_text())["num_key_value_heads"] == 1
