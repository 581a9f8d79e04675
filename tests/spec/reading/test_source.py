from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from tailor.spec.reading.source import Position, parse, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3.5e+2", -350.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("2026-11-20", "2026-11-20"),
        ("-.inf", -math.inf),
        ("1e", "1e"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_control_pyyaml_reads_them_differently() -> None:
    """Control: with PyYAML's own resolver these values change silently."""
    read = yaml.safe_load("{a: 2e-4, b: on, c: 010, d: 1, d: 2}")
    assert read == {"a": "2e-4", "b": True, "c": 8, "d": 2}
    document = parse("{a: 2e-4, b: on, c: 010, d: 1, d: 2}", "r.yaml")
    assert document.values == {"a": 2e-4, "b": "on", "c": 10, "d": 1}
    assert [str(problem) for problem in document.problems] == [
        "r.yaml:1:32: d: duplicate key; it is in line 1 already"
    ]


def test_quoted_scalars_stay_text() -> None:
    assert parse("a: '1'\nb: \"true\"\nc: |\n  x\n", "r").values == {"a": "1", "b": "true", "c": "x\n"}


def test_positions_of_keys_and_values() -> None:
    document = parse("# head\na:\n  bé: [1, {c: x}]\n", "r.yaml")
    path = ("a", "bé", 1, "c")
    assert document.keys[path] == Position("r.yaml", 3, 12)
    assert document.positions[path] == Position("r.yaml", 3, 15)
    assert document.at_value(("a", "bé", 0)) == Position("r.yaml", 3, 8)
    assert document.at_key(("a", "missing", "deep")) == Position("r.yaml", 2, 1)


def test_every_value_has_the_position_of_its_text() -> None:
    text = "a: {b: 1, c: [two, 3.5]}\nd:\n  - e: five\n    f: six\n"
    document = parse(text, "r")
    lines = text.splitlines()
    assert len(document.written) == 5
    for path, written in document.written.items():
        position = document.positions[path]
        assert lines[position.line - 1][position.column - 1 :].startswith(written)


@pytest.mark.parametrize(
    "text", ["[" * 500, "{a: " * 500, "a: \x00", "? [x]\n: y", "!!python/object:os.x {}", "\ud800"]
)
def test_invalid_text_is_a_problem(text: str) -> None:
    assert parse(text, "r").problems
