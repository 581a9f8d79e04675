"""Which modules may import which, including imports inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RAY_IN_TESTS = (
    "tests/onray/",
    "tests/faults/",
    "tests/helpers/ray_clusters.py",
    "tests/kube/test_autoscaled.py",
)
"""Tests that start Ray or compare with its code."""

Graph = Mapping[str, set[str]]


@cache
def sources(package: str = "tailor") -> dict[str, str]:
    """Module -> code."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text()
    return found


@cache
def imported(code: str) -> tuple[tuple[str, str], ...]:
    """All imports of the code: (module, name in it), and ("a.b", "") for `import a.b`."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(one.name, "") for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            found += [(node.module, one.name) for one in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append((node.args[0].value, ""))
    return tuple(found)


def graph(modules: Mapping[str, str]) -> Graph:
    """Module -> the modules that it imports."""
    edges = {}
    for importer, code in modules.items():
        taken = {f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in imported(code)}
        edges[importer] = (taken & modules.keys()) - {importer}
    return edges


def cycles(edges: Graph) -> list[list[str]]:
    """The strongly connected components of several modules (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            at = stack.index(node)
            component = sorted(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for node in edges:
        if node not in order:
            visit(node)
    return found


def packages(edges: Graph) -> Graph:
    """The import graph of the packages and modules directly in `tailor`."""
    found: dict[str, set[str]] = {}
    for name, others in edges.items():
        own = name.split(".")[1] if "." in name else ""
        found.setdefault(own, set()).update(o.split(".")[1] if "." in o else "" for o in others)
    return {own: others - {own} for own, others in found.items()}


def test_no_module_imports_itself_through_others() -> None:
    assert cycles(graph(sources())) == []


def test_no_package_imports_itself_through_others() -> None:
    assert cycles(packages(graph(sources()))) == []


@pytest.mark.parametrize(
    "back",
    [
        "import tailor.spec.load",
        "def late():\n    from tailor.spec.load import load_recipe",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tailor.spec import load",
        "import importlib\nimportlib.import_module('tailor.spec.load')",
    ],
)
def test_control_a_cycle_is_found(back: str) -> None:
    modules = dict(sources())
    modules["tailor.layout"] += f"\n{back}\n"
    (found,) = cycles(graph(modules))
    assert {"tailor.layout", "tailor.spec.load"} <= set(found)
    assert cycles(packages(graph(modules))) == [["layout", "spec"]]


def contracts() -> dict[str, dict[str, Any]]:
    """The import contracts of pyproject.toml, by name."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    text = (ROOT / "pyproject.toml").read_text()
    return {one["name"]: one for one in tomllib.loads(text)["tool"]["importlinter"]["contracts"]}


def below_tailor() -> set[str]:
    """Packages and modules directly in `tailor`."""
    return {name.split(".")[1] for name in sources() if "." in name}


def test_the_layers_name_every_package() -> None:
    layers = contracts()["Imports only go down"]["layers"]
    named = [name for layer in layers for name in re.split(r"\s*[:|]\s*", layer)]
    assert sorted(named) == sorted(below_tailor())


def test_the_contracts_on_ray_name_every_package() -> None:
    found = contracts()
    strict = found["Only tailor.onray imports Ray"]["source_modules"]
    direct = found["What runs tailor.onray imports Ray through it alone"]["source_modules"]
    assert sorted([*strict, *direct, "tailor.onray"]) == sorted(f"tailor.{name}" for name in below_tailor())


def importers_of_ray(modules: Mapping[str, str]) -> set[str]:
    return {
        name
        for name, code in modules.items()
        if any(module.split(".")[0] == "ray" for module, _ in imported(code))
    }


def test_only_onray_imports_ray() -> None:
    assert {n for n in importers_of_ray(sources()) if not n.startswith("tailor.onray.")} == set()


def test_few_tests_import_ray() -> None:
    files = {f"{name.replace('.', '/')}.py" for name in importers_of_ray(sources("tests"))}
    assert {file for file in files if not file.startswith(RAY_IN_TESTS)} == set()


def test_control_an_import_of_ray_is_found() -> None:
    codes = {"a": "def late():\n    from ray.util import f", "b": "import rayon", "c": "import_module('ray')"}
    assert importers_of_ray(codes) == {"a", "c"}
    assert importers_of_ray(sources()), "the imports of tailor.onray"
