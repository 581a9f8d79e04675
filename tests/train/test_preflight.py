"""What the model of a recipe cannot do is found before its data is prepared, and the plan's groups are those of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.onray.planning import examine
from tailor.plan.outline import NoOutline, Outline
from tailor.spec.recipe import Recipe
from tailor.train.optimizer import build_optimizer
from tests.helpers.families import FAMILIES
from tests.helpers.family import COMMON
from tests.helpers.models import byte_tokenizer, load_model, tiny_llama


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("bases")
    tiny_llama(folder / "llama")
    for key in ("mamba", "qwen2", "bloom", "qwen3_moe"):
        family = FAMILIES[key]
        AutoConfig.for_model(family.model_type, **{**COMMON, **family.sizes}).save_pretrained(folder / key)
        byte_tokenizer(folder / key)
    return folder


def recipe(path: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"path": str(path)},
        "data": {"train": [{"path": "rows.jsonl"}], "pack": False},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-3},
        "save": {"to": "run"},
    }
    return Recipe.model_validate({key: {**values[key], **sections.pop(key, {})} for key in values} | sections)


def outline(path: Path, **sections: Any) -> Outline:
    found = examine(recipe(path, **sections))
    assert not isinstance(found, NoOutline), found.reason
    return found


NAMES = "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
GRITLM = {"name": "gritlm", "embedding_batch_size": 8, "matryoshka": [64]}
MISTAKES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unknown": (
        "llama",
        {"model": {"adapter": {"target_modules": ["v_proj", "qproj"]}}},
        "model.adapter.target_modules names qproj, but LlamaForCausalLM has no module of that name",
        f"did you mean q_proj? Otherwise choose from {NAMES}, or all-linear",
    ),
    "block": (
        "llama",
        {"model": {"adapter": {"target_modules": ["self_attn"]}}},
        "model.adapter.target_modules names self_attn, which is no linear layer of LlamaForCausalLM but a LlamaAttention",
        f"choose from {NAMES}, or all-linear",
    ),
    "path": (
        "llama",
        {"model": {"adapter": {"target_modules": ["layers.7.mlp.up_proj"]}}},
        "names layers.7.mlp.up_proj, but",
        "did you mean up_proj?",
    ),
    "saved": (
        "llama",
        {"model": {"adapter": {"modules_to_save": ["embed_token"]}}},
        "model.adapter.modules_to_save names embed_token, but",
        f"did you mean embed_tokens? Otherwise choose from {NAMES}",
    ),
    "quantized": (
        "llama",
        {"model": {"adapter": {"modules_to_save": ["down_proj"]}, "quantize": {}}},
        "modules_to_save names down_proj, whose weights are quantized",
        "remove model.quantize",
    ),
    "read directly": (
        "mamba",
        {"model": {"adapter": {"target_modules": ["x_proj"]}}},
        "reads the weight of backbone.layers.0.mixer.x_proj directly",
        "choose from in_proj",
    ),
    "attention": (
        "mamba",
        {"model": {"attention": "flash_attention_2"}},
        "model.attention is flash_attention_2, which MambaForCausalLM does not support",
        "choose from auto, eager",
    ),
    "beacon": (
        "qwen3_moe",
        {"model": {"beacon": {}}},
        "cannot have beacons: beacons support the model types llama,",
        "remove model.beacon",
    ),
    "ratio": (
        "llama",
        {"optim": {"learning_rate_ratios": {"embeddings": 2}}, "model": {"adapter": {}}},
        "optim.learning_rate_ratios.embeddings: this recipe trains no such weights",
        "model.adapter.modules_to_save",
    ),
    "dropout": (
        "mamba",
        {"model": {"base_dropout": 0.1}},
        "(mamba) has no dropout",
        "remove model.base_dropout",
    ),
    "packing": ("bloom", {"data": {"pack": True}}, "cannot isolate packed documents", "data.pack: false"),
    "embedding": ("llama", {"method": GRITLM}, "method.matryoshka: 64 is not smaller", "method.projection"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_the_model_cannot_do(bases: Path, name: str) -> None:
    base, sections, message, hint = MISTAKES[name]
    with pytest.raises(ModelError) as caught:
        examine(recipe(bases / base, **sections))
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("llama", {"adapter": {"target_modules": ["q_proj", "layers.1.mlp.up_proj", "lm_head"]}}),
        ("llama", {"attention": "flash_attention_2"}),  # installed or not
        ("llama", {"beacon": {"window": 16, "ratios": [2]}}),
        ("mamba", {"adapter": {"target_modules": ["in_proj", "embeddings"]}}),
        ("llama", {"adapter": {"modules_to_save": ["embed_tokens"]}, "quantize": {}}),
    ],
    ids=str,
)
def test_control_what_it_can(bases: Path, base: str, model: dict[str, Any]) -> None:
    assert outline(bases / base, model=model).trained > 0


def test_the_state_of_random_numbers_is_kept(bases: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    outline(bases / "llama", model={"adapter": {}})
    assert torch.equal(torch.random.get_rng_state(), before)


CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "lora": {
        "model": {"adapter": {"rank": 4, "modules_to_save": ["lm_head"]}},
        "optim": {"learning_rate_ratios": {"lora_b": 16, "head": 0.5}},
    },
    "new tokens": {"model": {"add_tokens": ["<a>", "<b>"], "adapter": {"rank": 2}}},
    "beacons": {"model": {"beacon": {"window": 16, "ratios": [2], "rank": 2}}},
    "embedding": {
        "method": {"name": "gritlm", "mode": "embedding", "embedding_batch_size": 2, "projection": 8}
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_groups_are_those_of_the_optimizer(bases: Path, tmp_path: Path, name: str) -> None:
    sections = CASES[name]
    optim = {"learning_rate": 1e-3, "weight_decay": 0.1, **sections.get("optim", {})}
    found = outline(bases / "llama", **{**sections, "optim": optim})
    spec = recipe(bases / "llama", **{**sections, "optim": optim})
    model = loaded(spec)
    groups = build_optimizer(spec.optim, model).param_groups
    assert [
        (group.weight_decay, pytest.approx(group.learning_rate), group.tensors, group.parameters)
        for group in found.groups
    ] == [
        (
            group["weight_decay"],
            1e-3 * group["learning_rate_ratio"],
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
        )
        for group in groups
    ]
    assert found.trained == model.weights().trained
    for group in found.groups:
        assert sum(kind.parameters for kind in group.kinds) == group.parameters
        assert sum(kind.tensors for kind in group.kinds) == group.tensors


def loaded(spec: Recipe) -> Any:
    from tailor.models.embedding.embedder import fit_to_embed

    model = load_model(
        spec.model,
    )
    if spec.method.embedding is not None:
        fit_to_embed(model, spec.method.embedding, seed=0)
    return model


def test_the_kinds_of_a_group(bases: Path) -> None:
    kinds = {
        kind.name: (group.weight_decay, kind.tensors, kind.example)
        for group in outline(bases / "qwen2", optim={"weight_decay": 0.1}).groups
        for kind in group.kinds
    }
    assert kinds == {
        "Embedding.weight": (0.1, 1, "model.embed_tokens.weight"),
        "Linear.weight": (0.1, 15, "model.layers.0.self_attn.q_proj.weight"),
        "Linear.bias": (0.0, 6, "model.layers.0.self_attn.q_proj.bias"),
        "Qwen2RMSNorm.weight": (0.0, 5, "model.layers.0.input_layernorm.weight"),
    }
    lora = outline(bases / "qwen2", model={"adapter": {"rank": 2}}).groups
    assert [[kind.name for kind in group.kinds] for group in lora] == [["lora_A", "lora_B"]]


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Qwen3-VL has a class for images and text only. Gemma 3 has one that also reads text alone."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ModelError, match=r"no AutoModelForCausalLM for .* \(qwen3_vl\)"):
        examine(recipe(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    assert isinstance(examine(recipe(tmp_path)), NoOutline)
