"""The tables of other trainers: their keys exist, and every argument that a trainer defines has a row."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.spec.moving.conversions import CONVERSIONS
from tailor.spec.reading import schema_tree
from tailor.spec.reading.source import dotted
from tailor.spec.recipe import Recipe
from tailor.spec.trainers.facts import FACTS
from tailor.spec.trainers.registry import IMPORTED, TRAINERS
from tailor.spec.trainers.rows import Row, Trainer, Verdict
from tailor.spec.trainers.transformers import TRAINING
from tests.spec.trainers import upstream

KEYS = {dotted(path) for paths in schema_tree.key_index(Recipe).values() for path in paths}
ROWS = [(trainer, row) for trainer in TRAINERS for row in trainer.rows.values()]


@pytest.mark.parametrize("trainer", upstream.trainers())
def test_every_argument_has_a_row(trainer: str) -> None:
    """Those of the five systems, of TrainingArguments, and of LLaMA-Factory's and TRL's definitions."""
    rows = TRAINING if trainer == "transformers" else IMPORTED[trainer].rows
    assert [name for name in upstream.defined(trainer) if name not in rows] == []


def targets(row: Row) -> list[str]:
    found = [FACTS[key[1:]][0] if key.startswith("=") else key for key in row.keys]
    for value in row.values.values():
        if isinstance(value, dict):
            found += [str(key) for key in value if "." in str(key)]
    return [key for key in found if key]


def test_every_key_of_the_tables_exists() -> None:
    unknown = {
        (trainer.name, row.name, key) for trainer, row in ROWS for key in targets(row) if key not in KEYS
    }
    assert not unknown


def test_every_row_says_something() -> None:
    for trainer, row in ROWS:
        where = (trainer.name, row.name)
        assert bool(row.keys) == (row.outcome == "taken"), where
        assert row.text or row.outcome == "taken", where
        assert not row.convert or row.convert in CONVERSIONS, where
        assert all(value.text for value in row.values.values() if isinstance(value, Verdict)), where


def test_marks_and_defaults_have_rows() -> None:
    for trainer in TRAINERS:
        prefixes = {name.split(".")[0] for name in trainer.rows}
        assert {*trainer.marks} <= {*trainer.rows, *prefixes}, trainer.name
        assert {*trainer.defaults} <= {*trainer.rows}, trainer.name


def accepted(key: str) -> Any:
    """The values that a key accepts, if it accepts only some."""
    path = key.split(".")
    sections: list[Any] = [Recipe]
    choices: set[Any] = set()
    for step in path:
        fields = [info for section in sections if (info := schema_tree.field(section, step)) is not None]
        choices = {choice for info in fields for choice in schema_tree.of_field(info).choices}
        sections = [section for info in fields for section in schema_tree.of_field(info).sections]
    return choices


def bad_values(trainer: Trainer, row: Row) -> list[Any]:
    """Values of a row that its key does not accept."""
    found = []
    for value in row.values.values():
        result = value.value if isinstance(value, Verdict) else value
        if (
            isinstance(result, str)
            and row.keys
            and (choices := accepted(row.keys[0]))
            and result not in choices
        ):
            found.append(result)
    return found


def test_every_value_of_the_tables_is_one_of_the_key() -> None:
    assert {(trainer.name, row.name): bad for trainer, row in ROWS if (bad := bad_values(trainer, row))} == {}


def test_bad_values_are_seen() -> None:
    """Control."""
    row = Row("x", "taken", ("optim.schedule",), values={"a": "cosine", "b": "sine"})
    assert bad_values(TRAINERS[0], row) == ["sine"]
    assert targets(Row("x", "taken", ("=per_device",), values={"a": {"no.key": 1}})) == [
        "train.batch_size",
        "no.key",
    ]
