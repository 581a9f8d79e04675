"""docs/design/map.md names every layer of the import contract and every module, with the first line of its docstring."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
MAP = ROOT / "docs" / "design" / "map.md"
LAYERS = "<!-- layers -->\n", "<!-- /layers -->"
FILES = "<!-- map -->\n```\n", "```\n<!-- /map -->"
COLUMN = 30
"""Where the purpose of a file begins."""


def purpose(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file} does not say what it is for"
    return docstring.split("\n")[0]


def tree(folder: Path, depth: int = 0) -> list[str]:
    """A line per package, then its modules, indented below it."""
    lines = [line(f"{folder.name}/", purpose(folder / "__init__.py"), depth)]
    for file in sorted(folder.glob("*.py")):
        if file.name not in ("__init__.py", "__main__.py"):
            lines.append(line(file.name, purpose(file), depth + 1))
    for below in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += tree(below, depth + 1)
    return lines


def line(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth}{name:<{COLUMN - 2 * depth - 1}} {text}"


def layers(contracts: list[dict[str, Any]]) -> list[str]:
    """The layers of the import contract as a list, the highest first, and the imports that are forbidden."""
    lines = []
    for contract in contracts:
        if contract["type"] == "layers":
            if (packages := contract.get("containers", ["tailor"])) != ["tailor"]:
                lines += [
                    f"In `{'`, `'.join(packages)}`: {contract['name'][0].lower()}{contract['name'][1:]}.",
                    "",
                ]
            for number, layer in enumerate(contract["layers"], 1):
                names = layer.replace("|", ":").split(":")
                lines.append(f"{number}. " + ", ".join(f"`{name.strip(' ()')}`" for name in names))
            lines.append("")
    for contract in contracts:
        if contract["type"] == "forbidden":
            sources, forbidden = (
                ", ".join(f"`{name.removeprefix('tailor.')}`" for name in contract[key])
                for key in ("source_modules", "forbidden_modules")
            )
            directly = " directly" if contract.get("allow_indirect_imports") else ""
            lines.append(f"- **{contract['name']}.** {sources}: no import of {forbidden}{directly}.")
    return lines


def test_the_map_is_complete(request: pytest.FixtureRequest) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    expected = text = MAP.read_text()
    for (begin, end), lines in ((LAYERS, layers(contracts)), (FILES, tree(ROOT / "tailor"))):
        before, rest = expected.split(begin, 1)
        expected = before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    if request.config.getoption("--update-fixtures"):
        MAP.write_text(expected)
    else:
        assert text == expected, "update it: pytest tests/docs --update-fixtures"


def test_layers_are_read_from_the_contract() -> None:
    contracts = [
        {"type": "forbidden", "name": "A", "source_modules": ["tailor.a"], "forbidden_modules": ["ray"]},
        {"type": "layers", "layers": ["top", "(left) : right | other"]},
    ]
    assert layers(contracts) == [
        "1. `top`",
        "2. `left`, `right`, `other`",
        "",
        "- **A.** `a`: no import of `ray`.",
    ]
