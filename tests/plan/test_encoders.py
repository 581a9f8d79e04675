"""Encoders in recipes: what they cannot do is refused by name, and their weights and positions are counted as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.models import outline
from tailor.plan.checks import check_config
from tailor.plan.facts import ModelFacts
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe
from tests.helpers.encoders import COMMON, KINDS, POSITIONS, tiny_encoder

EMBEDDING = {"name": "gritlm", "mode": "embedding"}
FINAL = {"tasks": [{"name": "retrieval", "data": {"path": "rows.jsonl"}}]}


def check(config: dict[str, Any], **sections: Any) -> None:
    given: dict[str, Any] = {
        "model": {"path": "base"},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "method": EMBEDDING,
        "optim": {"learning_rate": 1e-5},
        "train": {"epochs": 1},
        "save": {"to": "run"},
    }
    merged = {
        name: {**given.get(name, {}), **section} for name, section in sections.items() if name != "method"
    }
    method = {"method": sections["method"]} if "method" in sections else {}
    check_config(Recipe.model_validate({**given, **merged, **method}), config)


CONFIG = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 96}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "unified": ("cannot generate, and method.mode unified trains", {"method": {"name": "gritlm"}}),
    "generative": ("method.mode generative", {"method": {"name": "gritlm", "mode": "generative"}}),
    "sft": ("method sft trains generation", {"method": {"name": "sft"}}),
    "pretrain": ("method pretrain trains generation", {"method": {"name": "pretrain"}}),
    "dpo": ("method dpo trains generation", {"method": {"name": "dpo"}}),
    "causal": ("always bidirectional", {"method": {**EMBEDDING, "attention": "causal"}}),
    "segments": (
        "always bidirectional",
        {"method": {**EMBEDDING, "attention": "bidirectional_instruction"}},
    ),
    "widen": ("cannot be widened", {"method": {**EMBEDDING, "window": "widen"}}),
    "quantize": (
        "model.quantize is not",
        {"model": {"path": "base", "quantize": {"type": "nf4"}, "adapter": {"rank": 4}}},
    ),
    "tokens": ("model.add_tokens is not", {"model": {"path": "base", "add_tokens": ["<x>"]}}),
    "rope": (
        "model.rope is not",
        {"model": {"path": "base", "rope": {"name": "linear", "factor": 2.0, "original_length": 96}}},
    ),
    "head": ("no output head of its own", {"optim": {"learning_rate_ratios": {"head": 2.0}}}),
    "task": (
        r"evaluate\.final\.tasks\[1\]: perplexity needs a model that generates",
        {"evaluate": {"final": {"tasks": [*FINAL["tasks"], {"name": "perplexity"}]}}},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_encoder_cannot_do_is_refused(case: str) -> None:
    message, sections = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        check(CONFIG, **sections)
    assert caught.value.hint


def test_an_embedding_recipe_is_accepted() -> None:
    check(CONFIG)
    check(CONFIG, model={"path": "base", "adapter": {"rank": 4}}, evaluate={"final": FINAL})
    check({**CONFIG, "is_decoder": True}, method={"name": "gritlm"})  # a decoder, as its config.json says


SELDOM = [pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS if kind not in COMMON]


@pytest.mark.parametrize("kind", [*COMMON, *SELDOM])
def test_weights_and_positions_are_counted(kind: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    config = json.loads((tiny_encoder(tmp_path, kind) / "config.json").read_text())
    built = outline.build(Model(path=str(tmp_path)))
    facts = ModelFacts.from_config(config, outline.read(built, Model(path=str(tmp_path))))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        sizes = {
            name: file.get_tensor(name).numel() for name in set(file.keys()) if not name.startswith("pooler.")
        }
    assert facts.outline is not None
    assert facts.outline.total == facts.linear_parameters + facts.embedding_parameters == sum(sizes.values())
    table = 261 * (24 if kind == "electra" else 32)
    assert facts.table == facts.embedding_parameters == table
    assert facts.active_parameters == sum(sizes.values()) - table
    assert (facts.hidden, facts.layers, facts.heads, facts.positions) == (32, 2, 4, POSITIONS)
    estimate = ModelFacts.from_config(config)
    assert estimate.linear_parameters == pytest.approx(
        2 * (4 * 32 * 32 + (3 if kind == "modernbert" else 2) * 32 * 64)
    )
    assert all(
        name.rsplit(".", 1)[-1] != "dense" or "pooler" not in name for name in facts.outline.all_linear
    )
