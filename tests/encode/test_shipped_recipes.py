"""The sources of the shipped recipes: rows with the columns of the public data are read and have supervised tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tailor.encode.preview import preview
from tailor.errors import DataError
from tailor.spec.data import Data, Source
from tailor.spec.load import load_recipe
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe
from tests.encode.families import BUILT_IN
from tests.helpers.public_data import PUBLIC_DATA
from tests.helpers.tokenizers import bpe_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OWN_TEMPLATES = {
    "Qwen/Qwen3-4B-Instruct-2507": "chatml",
    "Qwen/Qwen3-8B": "qwen-3",
    "Qwen/Qwen2.5-7B-Instruct": "qwen-2.5",
    "google/gemma-3-1b-it": "gemma",
    "microsoft/phi-4": "phi-4",
    "allenai/OLMo-2-1124-7B-SFT": "zephyr",
    "alignment-handbook/zephyr-7b-sft-full": "zephyr",
    "meta-llama/Llama-3.2-3B-Instruct": "llama-3.1",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3",
}
"""Model -> the built-in template that equals its own, or has the same turns."""

NOT_SPECIAL = ("<s>", "</s>", "<think>", "</think>")
"""Tokens that every tokenizer of the tests has, and tokens that are not special."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the special tokens of all built-in templates. `<think>` is none in the models that have it."""
    tags = dict.fromkeys(
        tag for family in BUILT_IN.values() for tag in (*family.tags, family.bos, family.eos)
    )
    return bpe_tokenizer(
        tmp_path_factory.mktemp("tokenizer"), tags=[tag for tag in tags if tag not in NOT_SPECIAL]
    )


def stand_in(source: Source, folder: Path) -> Source:
    """The source with made-up rows that have the columns of the public data. Local sources stay."""
    if "://" not in source.path:
        return source.model_copy(update={"path": str(ROOT / source.path), "limit": 4})
    public = PUBLIC_DATA[source.path]
    assert source.split in public.splits, source
    assert source.subset in ((None,) if not public.subsets else public.subsets), source
    path = folder / f"{abs(hash((source.path, source.split)))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in public.sample))
    return Source(path=str(path), format=source.format, columns=source.columns)


def with_stand_ins(recipe: Recipe, folder: Path) -> Data:
    template = recipe.data.template or OWN_TEMPLATES.get(recipe.model.path)
    return recipe.data.model_copy(
        update={
            "train": [stand_in(source, folder) for source in recipe.data.train],
            "evaluation": [stand_in(source, folder) for source in recipe.data.evaluation],
            "template": template,
            "min_length": None,  # the made-up rows are short
        }
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_source_is_read(
    path: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path, check_files=False)
    data = with_stand_ins(recipe, tmp_path)
    local = recipe.model.path.startswith("recipes/")
    model = Model(path=recipe.model.path if local else str(tokenizer))
    for split in ("train", "evaluation") if data.evaluation else ("train",):
        rows = list(preview(data, model, recipe.method, split=split, rows=4))
        assert len(rows) >= len(data.train if split == "train" else data.evaluation)
        for row in rows:
            assert "left out" not in row.note, row
            assert "dropped" not in row.note, row
            for pieces in row.examples:
                assert recipe.method.embedding or any(piece.supervised for piece in pieces), row


def test_the_control_other_columns_are_noticed(tokenizer: Path, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "llama2-7b-lima-qlora.yaml", check_files=False)
    source = recipe.data.train[0]
    wrong = recipe.data.model_copy(
        update={"train": [source.model_copy(update={"columns": {"text": "talk"}})]}
    )
    data = with_stand_ins(recipe.model_copy(update={"data": wrong}), tmp_path)
    with pytest.raises(DataError, match="no column `talk`"):
        list(preview(data, Model(path=str(tokenizer)), recipe.method, split="train", rows=1))
    with pytest.raises(AssertionError):
        stand_in(Source(path="hf://HuggingFaceH4/ultrachat_200k"), tmp_path)
    with pytest.raises(KeyError):
        stand_in(Source(path="hf://no/such"), tmp_path)
