"""The cases of benchmarks/parity, which `make real` runs: their recipes are valid, and both sides render the same text."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from tailor.errors import RecipeError
from tailor.spec.load import load_recipe
from tests.docs.test_pages import ROOT

FOLDER = ROOT / "benchmarks" / "parity"
MODEL = ROOT / "recipes" / "quickstart" / "base"
BUILT_IN = ROOT / "tailor" / "encode" / "templates" / "chatml.jinja"


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_cases", FOLDER / "cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def test_the_recipes_are_valid(cases: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for name, case in cases.CASES.items():
        case.write_rows(tmp_path / "rows.jsonl")
        path.write_text(json.dumps(case.recipe(str(MODEL), tmp_path)))
        recipe = load_recipe(path)
        assert (recipe.train.steps or 0) >= 5, name
        assert recipe.train.precision == "fp32", name
        assert case.mistakes, name
    path.write_text(path.read_text().replace('"beta"', '"betta"'))
    with pytest.raises(RecipeError, match="betta"):
        load_recipe(path)


def test_both_templates_render_the_same_text(cases: ModuleType) -> None:
    """They differ in the newline after the last turn alone, which tailor does not learn and TRL would."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ours, theirs = BUILT_IN.read_text(), (FOLDER / "chatml.jinja").read_text()
    chats = [row["messages"] for row in cases.ROWS["conversations"](20)]
    chats += [row["prompt"] + row["completion"] for row in cases.ROWS["answers"](20)]

    def render(chat: list[dict[str, str]], template: str, start: bool = False) -> str:
        text = tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=start
        )
        assert isinstance(text, str)
        return text

    for chat in chats:
        assert render(chat, ours) == render(chat, theirs) + "\n"
        assert render(chat[:-1], ours, start=True) == render(chat[:-1], theirs, start=True)
    assert render(chats[0], ours) != render(chats[0], theirs)  # control
