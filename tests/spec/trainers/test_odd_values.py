"""Odd values of every argument: an answer or a refusal, and never a traceback."""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import RecipeError
from tailor.spec.moving.conversions import CONVERSIONS
from tailor.spec.moving.draft import Argument
from tailor.spec.moving.importing import convert, import_file
from tailor.spec.reading.source import parse
from tailor.spec.trainers.registry import IMPORTED
from tests.spec.trainers import upstream

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 10**30, 0.5, -2.5, math.nan, math.inf, "", " ", "true", "none", "abc", "1e-4", "a,b", "x" * 300, "\n# }",
    "train[:10%]", "a+b[", "s3://b/x", [], [None], ["a", 1, None], [[]], [{}], [{"path": None}], [{"path": "a/b", "type": 3, "split": "x[1:2]"}],
    {}, {"a": 1}, {"name": []}, {"name": "lora", "r": "x"}, {"zero_optimization": []}, {"stage": "x"}, {"min_lr_rate": "a"}, {1: 2},
)  # fmt: skip
ROUNDS = 6


def answers(trainer: str, values: dict[str, Any]) -> int:
    """How many arguments get an answer; 0 for a refusal."""
    arguments = {name: Argument(name, value) for name, value in values.items()}
    try:
        found = convert(arguments, IMPORTED[trainer], "x.yaml", "recipe.yaml")
    except RecipeError:
        return 0
    document = parse(found.recipe, "recipe.yaml")
    assert not document.problems, (values, document.problems)
    assert isinstance(document.values, dict)
    return len(found.answers)


@pytest.mark.parametrize("trainer", IMPORTED)
def test_odd_values_never_raise(trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(7)
    names = [name for name, row in IMPORTED[trainer].rows.items() if row.outcome == "taken"]
    answered = 0
    for _ in range(ROUNDS):
        answered += answers(trainer, {name: draw.choice(ODD) for name in draw.sample(names, len(names) // 6)})
    for name in names:  # each alone, so that no refusal of another one hides it
        if IMPORTED[trainer].rows[name].convert or IMPORTED[trainer].rows[name].values:
            answered += answers(trainer, {name: draw.choice(ODD)})
    assert answered > len(names) // 10


def test_a_conversion_that_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""

    def broken(draft: Any, argument: Argument) -> None:
        raise ValueError(argument.name)

    monkeypatch.setitem(CONVERSIONS, "checkpointing", broken)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        answers("trl", {"gradient_checkpointing": "x"})


def test_changed_examples_never_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(11)
    for example in draw.sample(upstream.examples(), 40):
        values = {name: argument.value for name, argument in upstream.arguments(example).items()}
        for name in draw.sample(sorted(values), min(3, len(values))):
            values[name] = draw.choice(ODD)
        answers(example.split("/")[0], values)


def test_damaged_files_never_raise(tmp_path: Path) -> None:
    draw = random.Random(13)
    text = "torchrun --nproc_per_node 2 -m main.train --output_dir 'a b' --beacon_ratio 2 4 \\\n --lora_tune --max_length=64 $X\n"
    config = '{"model_name_or_path": "a/b", "train_file": "x.jsonl", "max_seq_length": 64, "lora_rank": [1, {"a": null}]}'
    for name, whole in (("a.sh", text), ("a.json", config), ("a", text), ("b.md", f"```bash\n{text}```\n")):
        for _ in range(40):
            at, size = draw.randrange(len(whole)), draw.randrange(4)
            damaged = (
                whole[:at]
                + draw.choice(["", "'", '"', "\\", "\n", "{", "--", "$(", "`", "\x00", "é"])
                + whole[at + size :]
            )
            (tmp_path / name).write_text(damaged)
            with contextlib.suppress(RecipeError):
                import_file(str(tmp_path / name))
