"""README's table of methods, adapters and strategies says what the rules of recipes say."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tailor.errors import RecipeError
from tailor.spec.load import load_recipe
from tailor.spec.methods.registry import METHODS
from tests.docs.test_pages import ROOT

STRATEGIES = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    **{f"ZeRO {stage}": {"name": "deepspeed", "stage": stage} for stage in (1, 2, 3)},
}
MODELS = {
    "full fine-tuning": {},
    "LoRA": {"adapter": {"rank": 8}},
    "QLoRA, 8-bit LoRA": {"adapter": {"rank": 8}, "quantize": {"type": "nf4"}},
    "activation beacons": {"beacon": {"window": 128, "ratios": [2]}},
}


def table() -> dict[tuple[str, str], str]:
    """(method, column) -> cell."""
    text = (ROOT / "README.md").read_text().split("## What works together\n\n")[1].split("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return {
        (method, column): cell
        for row in rows
        for method in re.findall(r"`(\w+)`", row[0])
        for column, cell in zip(head[1:], row[1:], strict=True)
    }


def said(cell: str) -> set[str]:
    """The strategies that a cell names."""
    if cell in ("yes", "–"):
        return set(STRATEGIES) if cell == "yes" else set()
    last = re.search(r"ZeRO 1–(\d)", cell)
    stages = range(1, int(last[1]) + 1) if last else ()
    return set(re.findall(r"ddp|fsdp", cell)) | {f"ZeRO {stage}" for stage in stages}


def problems(method: str, column: str, strategy: str, folder: Path) -> str:
    """What the rules say of a recipe with this combination."""
    beacons, cut = column == "activation beacons", column == "sequence parallelism"
    recipe = {
        "model": {"path": "org/model", **MODELS.get(column, {})},
        "data": {"train": [{"path": "hf://org/rows"}], **({"pack": False} if beacons else {})},
        "method": {"name": method, **({"documents": "isolate"} if beacons and method == "pretrain" else {})},
        "optim": {"learning_rate": 1e-4},
        "scale": {
            "workers": 2,
            "strategy": STRATEGIES[strategy],
            **({"sequence_parallel": 2} if cut else {}),
        },
        "save": {"to": "runs/a"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    try:
        load_recipe(path, check_files=False)
    except RecipeError as error:
        return str(error)
    return ""


def test_the_table_is_what_the_rules_say(tmp_path: Path) -> None:
    cells = table()
    assert {method for method, _ in cells} == set(METHODS.names())
    assert len(cells) == 5 * len(METHODS.names())
    for (method, column), cell in cells.items():
        works = {name for name in STRATEGIES if not problems(method, column, name, tmp_path)}
        assert works == said(cell), f"{method}, {column}"


def test_the_rules_are_those_of_the_combination(tmp_path: Path) -> None:
    """Control: a combination is refused for its own reason, and the cells are read."""
    assert "model.quantize" in problems("sft", "QLoRA, 8-bit LoRA", "fsdp", tmp_path)
    assert "method.name" in problems("kto", "full fine-tuning", "ZeRO 1", tmp_path)
    assert "scale.sequence_parallel" in problems("dpo", "sequence parallelism", "ddp", tmp_path)
    assert said("ddp, ZeRO 1–2") == {"ddp", "ZeRO 1", "ZeRO 2"}
    assert said("–") == set()
