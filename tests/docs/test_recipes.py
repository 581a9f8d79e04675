"""The table of recipes in docs/recipes.md. `--update-fixtures` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tailor.spec.load import load_recipe
from tests.helpers.public_configs import BASES
from tests.helpers.shipped_recipes import RECIPES, ROOT, Forecast, forecast

PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- recipes -->\n", "<!-- /recipes -->"
_MINUTES = re.compile(r"in (?:about )?((?:a|two|five) minutes?|minutes)\b")


def comment(path: Path) -> str:
    """The first paragraph of the opening comment."""
    lines = path.read_text().split("\n#\n")[1].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def first_sentence(text: str) -> str:
    return re.split(r"(?<! al)\.(?: |$)", text)[0].removesuffix(":").replace("|", "\\|")


def hours(found: Forecast) -> str:
    spent = found.duration.seconds / 3600
    return f"{spent:,.0f} h" if spent >= 10 else f"{spent:.1f} h" if spent >= 0.1 else "< 0.1 h"


def row(path: Path) -> str:
    text = comment(path)
    recipe = load_recipe(path, check_files=False)
    if recipe.model.path in BASES:
        found = forecast(path)
        needs = (
            f"{found.plan.workers} × {found.device.name}",
            f"{found.plan.memory.peak / 2**30:.1f} GiB",
            hours(found),
        )
    else:
        minutes = _MINUTES.search(text)
        assert minutes is not None, f"{path.name} says how many minutes it takes"
        needs = "2 CPU cores", "", minutes[1]
    cells = (f"[{path.stem}](../recipes/{path.name})", first_sentence(text), *needs)
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    head = "| recipe | what it does | smallest device | memory | time |\n|---|---|---|---|---|\n"
    return head + "".join(row(path) for path in RECIPES)


def test_the_table_is_current(request: pytest.FixtureRequest) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    written, _, after = rest.partition(END)
    made = table()
    if request.config.getoption("--update-fixtures"):
        PAGE.write_text(before + BEGIN + made + END + after)
        written = made
    assert written == made, "update it: pytest tests/docs/test_recipes.py --update-fixtures"
    assert made.count("\n") == len(RECIPES) + 2


def test_more_workers_take_less_time() -> None:
    """Control: the forecast is that of the recipe."""
    full, lora = (
        forecast(ROOT / "recipes" / f"{name}.yaml") for name in ("llama3.1-8b-full", "qwen3-4b-lora")
    )
    assert (full.plan.workers, lora.plan.workers) == (8, 1)
    assert full.plan.trained_parameters > 100 * lora.plan.trained_parameters
    assert full.duration.tokens > 10 * lora.duration.tokens
