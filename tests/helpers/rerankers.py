"""Rows, bases and plans of rerankers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tailor.data.token_store import TokenStore
from tailor.encode.prepare import prepare
from tailor.plan import Plan
from tailor.spec.recipe import Recipe
from tests.helpers.encoders import KINDS, tiny_encoder
from tests.helpers.families import FAMILIES
from tests.helpers.plans import make_plan

Planner = Callable[..., Plan]
WORDS = ["sea", "house", "river", "stone", "light", "garden", "winter", "paper", "bridge", "silver"]
STEPS = 6


def make_base(folder: Path, kind: str) -> None:
    """A tiny base: an encoder, or a decoder with one of three kinds of tokenizers. `kind` is `MODEL` or `MODEL/TOKENIZER`.

    bare: puts nothing around a text, as Qwen's. bos: `<s> A <s> B`, with token types, as Gemma's. unpadded: bare, without a
    padding token.
    """
    kind, _, tokens = kind.partition("/")
    if kind in KINDS:
        tiny_encoder(folder, kind, published=False)
        return
    FAMILIES[kind].make(folder)
    content, config = (
        json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    if tokens == "bos":
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
        config["padding_side"] = "left"
    if tokens == "unpadded":
        del config["pad_token"]
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def rows(count: int, seed: int, negatives: int = 3) -> list[dict[str, Any]]:
    """Queries of two words; the positive passage repeats them."""
    generator = np.random.default_rng(seed)

    def words(number: int) -> str:
        return " ".join(generator.choice(WORDS, number))

    found = []
    for _ in range(count):
        query = words(2)
        found.append(
            {
                "query": query,
                "pos": [f"{query} {words(int(generator.integers(1, 4)))}"],
                "neg": [words(int(generator.integers(2, 6))) for _ in range(negatives)],
                "pos_scores": [float(generator.normal(2))],
                "neg_scores": [float(generator.normal(-1)) for _ in range(negatives)],
            }
        )
    return found


def make_planner(folder: Path) -> Planner:
    """Makes plans of a method's keys, and of `kind`, `model`, `workers`, `strategy`, `train` and `save`."""
    stores: dict[Any, TokenStore] = {}
    for name, count, seed in (("train", 14, 0), ("evaluation", 5, 1)):
        lines = [json.dumps(row) for row in rows(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))

    def plan(place: str, kind: str = "bert", max_length: int = 64, **keys: Any) -> Plan:
        base = folder / kind.replace("/", "-")
        if not base.exists():
            make_base(base, kind)
        model = {"path": str(base), **keys.pop("model", {})}
        sections: dict[str, Any] = {
            "data": {
                "train": [{"path": str(folder / "train.jsonl")}],
                "evaluation": [{"path": str(folder / "evaluation.jsonl")}],
                "max_length": max_length,
                "on_long": "truncate",
            },
            "scale": {"workers": keys.pop("workers", 1), "strategy": keys.pop("strategy", "ddp")},
            "train": {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2, **keys.pop("train", {})},
            "evaluate": {"every": STEPS},
            "save": {"to": str(folder / place), **keys.pop("save", {})},
            "method": {"name": "rerank", "group_size": 3, **keys},
            "model": model,
            "optim": {"learning_rate": 1e-3, "schedule": "constant"},
        }
        recipe = Recipe.model_validate(sections)
        store = (kind, max_length, recipe.method.name, "distillation" in keys)
        if store not in stores:
            stores[store] = prepare(recipe.data, recipe.model, recipe.method, str(folder / "tokens")).tokens
        save = sections.pop("save")
        return make_plan(
            base, stores[store], folder / place, save={**save, "to": str(folder / place)}, **sections
        )

    return plan
