"""The structure of a base, read without weights, against the same model built with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.models import outline
from tailor.models.adapters import add_adapter
from tailor.models.dropout import active
from tailor.models.load import without_weights
from tailor.plan import ModelFacts
from tailor.plan.outline import NoOutline, Outline
from tailor.spec.adapter import Adapter
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES, SAMPLE
from tests.helpers.family import COMMON, DENSE
from tests.helpers.models import tiny_llama, with_own_code

GPT: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2},
    "gpt_bigcode": {**GPT, "n_positions": 64},
    "codegen": {**GPT, "rotary_dim": 8},
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt2": {**GPT, "n_positions": 64},
    "gpt_neo": {
        "hidden_size": 64,
        "num_heads": 4,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
        "resid_dropout": 0.2,
    },
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "hidden_dropout": 0.1},
    "cohere": DENSE,
    "gpt_oss": {**DENSE, "head_dim": 16, "num_local_experts": 4},
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        key: (family.model_type, {**COMMON, **family.sizes})
        for key, family in FAMILIES.items()
        if key in {*SAMPLE, "llama", "opt", "qwen2", "qwen3_moe"}
    },
    **{key: (key, {**COMMON, **sizes}) for key, sizes in OTHERS.items()},
}
UNADAPTED = ("qwen3_next",)
"""PEFT does not adapt `all-linear` of these."""


def write_config(folder: Path, kind: str, sizes: dict[str, Any]) -> tuple[Any, Path]:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **sizes)
    config.save_pretrained(folder)
    return config, folder


def outline_of(path: Path, **model: Any) -> Outline:
    spec = Model(path=str(path), **model)
    network = outline.build(spec)
    assert not isinstance(network, NoOutline), network.reason
    assert next(network.parameters()).device.type == "meta"
    return outline.read(network, spec)


def real(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def trained(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("key", CONFIGS)
def test_parameters_are_those_of_the_model_itself(tmp_path: Path, key: str) -> None:
    config, folder = write_config(tmp_path, *CONFIGS[key])
    network, found = real(config), outline_of(folder)
    facts = ModelFacts.from_config(json.loads((folder / "config.json").read_text()), found)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert found.total == found.used == facts.linear_parameters + facts.embedding_parameters == total
    tables = {network.get_input_embeddings().weight, network.get_output_embeddings().weight}
    assert facts.embedding_parameters == sum(table.numel() for table in tables)
    assert facts.tied == (len(tables) == 1)
    if key not in UNADAPTED:
        adapter = Adapter(rank=4)
        assert facts.adapter_parameters(adapter) == trained(
            add_adapter(network, adapter, mixed_precision=False)
        )


@pytest.mark.parametrize("key", ["mpt", "qwen2_moe", "gpt_bigcode", "codegen", "gpt_neo"])
def test_control_the_tables_give_another_number(tmp_path: Path, key: str) -> None:
    _, folder = write_config(tmp_path, *CONFIGS[key])
    facts = ModelFacts.from_config(json.loads((folder / "config.json").read_text()))
    estimate = facts.linear_parameters + facts.embedding_parameters
    assert abs(estimate / outline_of(folder).total - 1) > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "layers.1.mlp.down_proj"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"modules_to_save": ["lm_head", "o_proj"]},
        {"modules_to_save": ["norm"], "dora": True},
    ],
    ids=str,
)
def test_parameters_of_an_adapter(tmp_path: Path, options: dict[str, Any]) -> None:
    config, folder = write_config(tmp_path, *CONFIGS["qwen2"])
    adapter = Adapter(rank=3, **options)
    found = outline_of(folder).adapter_parameters(adapter)
    assert found == trained(add_adapter(real(config), adapter, mixed_precision=False))
    assert found != outline_of(folder).adapter_parameters(Adapter(rank=3)), "the control"


def test_of_a_mixture_of_experts_a_token_uses_the_experts_that_it_is_routed_to(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path, *CONFIGS["qwen3_moe"])
    experts = sum(p.numel() for name, p in real(config).named_parameters() if ".mlp.experts." in name)
    found = outline_of(folder)
    facts = ModelFacts.from_config(config.to_dict(), found)
    assert found.expert == experts > 0
    assert facts.active_parameters == found.total - experts // 2 - found.table


def test_a_model_that_cannot_be_built_has_no_outline(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "base")
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "newer_llama"}))
    found = outline.build(Model(path=str(path)))
    assert isinstance(found, NoOutline)
    assert found.reason.startswith("transformers cannot build the model: ")
    assert "newer_llama" in found.reason


def test_the_own_code_of_a_model_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    path = with_own_code(tiny_llama(tmp_path / "base"))
    found = outline.build(Model(path=str(path)))
    assert isinstance(found, NoOutline)
    assert "trust_remote_code is false" in found.reason
    assert outline_of(path, trust_remote_code=True).total == outline_of(tiny_llama(tmp_path / "plain")).total


DROPOUT = {
    "gpt2": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    "opt": {"attention_dropout": 0.2, "dropout": 0.1, "layerdrop": 0.3},
    "falcon": {"hidden_dropout": 0.1},  # read in the forward pass only
    "gpt_neo": {"resid_dropout": 0.2},
    "mpt": {},  # resid_pdrop has no effect
    "llama": {},
}
SET: dict[str, dict[str, Any]] = {
    "opt": {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.4, "layerdrop": 0.3},
    "mpt": {"resid_pdrop": 0.5},
}


@pytest.mark.parametrize("key", DROPOUT)
def test_the_dropouts_that_modules_take(tmp_path: Path, key: str) -> None:
    kind, sizes = CONFIGS[key]
    config, folder = write_config(tmp_path, kind, {**sizes, **SET.get(key, {})})
    before = config.to_dict()
    assert outline_of(folder).dropout == DROPOUT[key]
    assert active(config, lambda config: without_weights(config, False)) == DROPOUT[key]
    assert config.to_dict() == before


def test_the_base_dropout_replaces_them(tmp_path: Path) -> None:
    kind, sizes = CONFIGS["opt"]
    _, folder = write_config(tmp_path, kind, {**sizes, **SET["opt"]})
    assert outline_of(folder, base_dropout=0).dropout == {}
    replaced = {"attention_dropout": 0.4, "dropout": 0.4, "layerdrop": 0.3}
    assert outline_of(folder, base_dropout=0.4).dropout == replaced
    assert outline_of(folder, base_dropout=0.2).dropout["layerdrop"] == 0.2
