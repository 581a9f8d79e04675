"""Only the strategies' own code tests for a strategy; other code uses the traits of the spec class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailor.spec.scale import STRATEGIES

TAILOR = Path(__file__).parents[2] / "tailor"
CLASSES = {kind.__name__ for kind in STRATEGIES}
NAMES = set(STRATEGIES.names())
OWN = {
    "plan/deepspeed.py": "DeepSpeed's settings",
    "spec/rules/deepspeed.py": "the user's own DeepSpeed JSON",
    "spec/visibility.py": "the user's DeepSpeed JSON, which other machines must reach",
    "train/strategy/deepspeed.py": "its own spec",
    "train/strategy/fsdp.py": "its own spec",
}


def by_strategy(code: str) -> Iterator[tuple[int, str]]:
    """(line, code) of each test for a strategy's class or name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            if {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)} & CLASSES:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Compare):
            texts = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            if texts & NAMES:
                yield node.lineno, ast.unparse(node)


def test_no_code_depends_on_one_strategy() -> None:
    found = [
        f"tailor/{path.relative_to(TAILOR)}:{line}: {text}"
        for path in sorted(TAILOR.rglob("*.py"))
        if str(path.relative_to(TAILOR)) not in OWN
        for line, text in by_strategy(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["isinstance(plan.strategy, DeepSpeed | Fsdp)", 'name in ("fsdp", "other")', 'strategy.name != "ddp"'],
)
def test_control_a_test_by_strategy_is_found(code: str) -> None:
    assert list(by_strategy(code))


def test_the_exceptions_are_needed() -> None:
    assert [file for file in OWN if not list(by_strategy((TAILOR / file).read_text()))] == []
