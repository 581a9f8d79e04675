"""Figures per value of a column: the groups, the rows behind them, and the tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tailor.errors import DataError
from tailor.evaluate import source_rows
from tailor.evaluate.figures import mean, table
from tailor.evaluate.strata import MAX_VALUES, NONE, OTHERS, grouped
from tailor.evaluate.strata import table as table_by_value
from tailor.runs import evaluations
from tailor.spec.data import Source
from tailor.spec.suite import Intervals
from tests.helpers.evaluations import write_rows


def test_rare_values_share_a_group() -> None:
    values = ["a", 1, None, "", True, {"x": 1}, "a"]
    assert grouped(values) == ["a", "1", NONE, NONE, "true", '{"x": 1}', "a"]
    many = [str(at) for at in range(30)] + [str(at) for at in range(5, 30)]
    assert set(grouped(many)) == {str(at) for at in range(5, 30) if str(at) in grouped(many)} | {OTHERS}
    assert len(set(grouped(many))) == MAX_VALUES + 1
    assert len(set(grouped(many[:MAX_VALUES]))) == MAX_VALUES, "the control"


def test_each_group_has_the_figures_of_its_rows() -> None:
    draw = np.random.default_rng(0)
    groups = ["de", "en", "de", "en", "en", NONE]
    scores, base = draw.uniform(size=6), draw.uniform(size=6)
    models = {
        "a": {"f1": mean(scores), "half": mean(scores, [1, 0, 1, 0, 0, 0]), "other": mean([1.0])},
        "b": {"f1": mean(base), "half": mean(base, [1, 0, 1, 0, 0, 0]), "other": mean([1.0])},
    }
    found = table_by_value(groups, models, Intervals())
    assert [(entry["value"], entry["rows"]) for entry in found] == [("en", 3), ("de", 2), (NONE, 1)]
    rows = [1, 3, 4]
    expected = table({"a": {"f1": mean(scores[rows])}, "b": {"f1": mean(base[rows])}}, Intervals())
    assert found[0]["figures"] == expected, "`half` has no row in this group, and `other` has other rows"
    assert [entry["figure"] for entry in found[1]["figures"]] == ["f1", "half"]
    assert found[1]["figures"][0]["models"]["a"]["value"] == pytest.approx((scores[0] + scores[2]) / 2)
    results = {
        "models": {"a": {}, "b": {}},
        "strata": [{"task": "f1", "by": "lang", "values": found}],
    }
    ((head, body),) = evaluations.tables_by_value(results)
    assert head == ["lang", "metric of f1", "a", "b", "a - b", "rows"]
    assert [row[:2] + row[-1:] for row in body] == [
        ["en", "f1 %", "3"], ["de", "f1 %", "2"], ["", "half %", "2"], [NONE, "f1 %", "1"],
    ]  # fmt: skip


def test_rows_are_found_by_source_file_and_number(tmp_path: Path) -> None:
    """In a folder, two files have rows of the same number."""
    for name in ("x", "y"):
        write_rows(tmp_path / f"{name}.jsonl", [{"topic": f"{name}{at}"} for at in range(4)])
    other = write_rows(tmp_path / "other.json", [{"topic": "o"}])
    sources = [Source(path=str(other)), Source(path=str(tmp_path / "[xy].jsonl"))]
    x, y = (str(tmp_path / f"{name}.jsonl") for name in ("x", "y"))
    locations = [
        {"source": 1, "file": y, "row": 2},
        {"source": 0, "file": str(other), "row": 1},
        {"source": 1, "file": x, "row": 2},
        {"source": 1, "file": y, "row": 2},
    ]
    found = source_rows.read(sources, "data.evaluation", locations)
    assert [row["topic"] for row in found] == ["y1", "o", "x1", "y1"]
    lines = Path(x).read_text().splitlines()
    Path(x).write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match=r"x\.jsonl:2 is an evaluated row, but the file does not have it"):
        source_rows.read(sources, "data.evaluation", locations)
