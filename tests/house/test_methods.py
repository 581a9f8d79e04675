"""No code outside `tailor/methods` and `tailor/spec` tests for a method; it uses the traits of the spec class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailor.spec.methods.registry import METHODS

TAILOR = Path(__file__).parents[2] / "tailor"
CLASSES = {section.__name__ for section in METHODS}
NAMES = set(METHODS.names())
ALLOWED = ("methods/", "spec/")


def by_method(code: str) -> Iterator[tuple[int, str]]:
    """(line, code) of each test for a method's class or name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            if {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)} & CLASSES:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = [side for side in sides if _is_a_name(side)]
            others = [side for side in sides if side not in names]
            texts = {one.value for s in others for one in ast.walk(s) if isinstance(one, ast.Constant)}
            groups = {s.id for s in sides if isinstance(s, ast.Name)} & {"ANSWERS", "CUT_METHODS"}
            if names and ((texts and texts <= NAMES) or groups):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Match) and _is_a_name(node.subject):
            texts = {
                one.value
                for case in node.cases
                for one in ast.walk(case.pattern)
                if isinstance(one, ast.Constant)
            }
            if texts & NAMES:
                yield node.lineno, f"match {ast.unparse(node.subject)}"


def _is_a_name(node: ast.expr) -> bool:
    """Whether it is a method's `x.name`, `x["name"]` or `name`, not that of a strategy, task or column."""
    text = ast.unparse(node)
    return text in ("name", "method") or text.endswith(
        ("method.name", "method['name']", "method']['name']", "spec.name")
    )


def test_no_code_depends_on_one_method() -> None:
    found = [
        f"tailor/{path.relative_to(TAILOR)}:{line}: {text}"
        for path in sorted(TAILOR.rglob("*.py"))
        if not str(path.relative_to(TAILOR)).startswith(ALLOWED)
        for line, text in by_method(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(plan.method, Gritlm)",
        "isinstance(method, Dpo | Kto)",
        'recipe.method.name == "kto"',
        'plan["method"]["name"] in ("sft", "pretrain")',
        "plan.method.name in ANSWERS",
        'match method.name:\n    case "sft":\n        pass',
    ],
)
def test_control_a_test_by_method_is_found(code: str) -> None:
    assert list(by_method(code))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(one, Source)",
        'name in ("gritlm", "other_format")',
        'strategy.name == "ddp"',
        "method.embeds",
    ],
)
def test_control_other_code_is_not_found(code: str) -> None:
    assert not list(by_method(code))
