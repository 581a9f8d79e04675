"""The dropout of a base: what `model.base_dropout` changes, and that the run names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.data.token_store import TokenStore
from tailor.plan import DataFacts, Plan, build
from tailor.spec.recipe import Recipe
from tailor.train import loop
from tests.helpers.family import COMMON
from tests.helpers.hosts import PlainHost
from tests.helpers.models import byte_tokenizer
from tests.helpers.plans import CPU
from tests.helpers.stores import make_store

SIZES = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "initializer_range": 0.2}
NONE = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for name, dropout in (("with", {}), ("without", NONE)):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**COMMON, **SIZES, **dropout)).save_pretrained(folder / name)
        found[name] = byte_tokenizer(folder / name)
    return found


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("tokens"), [20, 30, 25, 12])


def plan(base: Path, tokens: TokenStore, run: Path, **model: Any) -> Plan:
    from tailor.data.facts import data_facts
    from tailor.onray.planning import examine

    recipe = Recipe.model_validate(
        {
            "model": {"path": str(base), **model},
            "data": {"train": [{"path": "unused"}], "max_length": 64},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-2},
            "train": {"precision": "fp32", "batch_size": 4, "micro_batch_size": 1, "steps": 3},
            "save": {"to": str(run)},
        }
    )
    facts: DataFacts = data_facts(tokens, recipe)
    config = json.loads((base / "config.json").read_text())
    return build(recipe, facts, config, CPU, run_url=str(run), outline=examine(recipe))


def trained(plan: Plan) -> tuple[list[float], list[str]]:
    host = PlainHost()
    loop.run(plan, host)
    return host.losses(), [record["message"] for record in host.of("status")]


def test_0_is_a_base_without_dropout_to_the_last_bit(
    bases: dict[str, Path], tokens: TokenStore, tmp_path: Path
) -> None:
    off, messages = trained(plan(bases["with"], tokens, tmp_path / "off", base_dropout=0))
    without, _ = trained(plan(bases["without"], tokens, tmp_path / "without"))
    own, named = trained(plan(bases["with"], tokens, tmp_path / "own"))
    raised, _ = trained(plan(bases["without"], tokens, tmp_path / "raised", base_dropout=0.1))
    assert off == without
    assert own != without, "the control: the dropout of the base is active by default"
    assert raised == own
    expected = "dropout of the base: attn_pdrop 0.1, embd_pdrop 0.1, resid_pdrop 0.1; model.base_dropout: 0 turns it off"
    assert expected in named
    assert not any("dropout" in message for message in messages)


def test_the_saved_model_has_the_dropout_it_was_trained_with(
    bases: dict[str, Path], tokens: TokenStore, tmp_path: Path
) -> None:
    made = plan(bases["with"], tokens, tmp_path / "run", base_dropout=0)
    assert made.base_dropout == {}
    loop.run(made, PlainHost())
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert {key: config[key] for key in NONE} == NONE
