"""The conditions of `fail_if`, with numbers and with the figures of compared models."""

from __future__ import annotations

import pytest

from tailor.errors import DataError
from tailor.evaluate.figures import from_losses, mean, table
from tailor.evaluate.gate import broken_bounds, require_compared
from tailor.spec.bounds import Bound, parse, renamed
from tailor.spec.suite import Intervals

LABELS = {"base": "base", "runs/old": "old"}
ENTRIES = table(
    {
        "new": {"rougeL": mean([0.2, 0.4]), **from_losses([4.0, 0.0], [1, 1], [1, 1])},
        "base": {"rougeL": mean([0.3, 0.4]), **from_losses([3.0, 0.0], [1, 1], [1, 1])},
        "old": {"rougeL": mean([0.3, 0.3]), **from_losses([4.0, 0.0], [1, 1], [1, 1])},
    },
    Intervals(),
)


def test_numbers() -> None:
    bounds = {"rougeL": "< 0.31", "perplexity": "> 5"}
    assert list(broken_bounds(bounds, ENTRIES)) == [
        "rougeL is 0.3, and fail_if says < 0.31",
        "perplexity is 7.389, and fail_if says > 5",
    ]
    assert not list(broken_bounds({"rougeL": "< 0.3", "loss": ">= 2.1"}, ENTRIES))


@pytest.mark.parametrize(
    ("figure", "bound", "fails"),
    [
        ("rougeL", "< base", True),
        ("rougeL", "< base - 0.04", True),
        ("rougeL", "< base - 0.06", False),
        ("rougeL", "< base -6e-2", False),
        ("rougeL", "< runs/old + 0.01", True),
        ("rougeL", "< runs/old - 0.01", False),
        ("loss", "> base", True),
        ("loss", "> base + 0.4", True),
        ("loss", "> base + 0.6", False),
        ("loss", "> runs/old", False),
        ("loss", ">= runs/old", True),
    ],
)
def test_compared_models(figure: str, bound: str, fails: bool) -> None:
    assert bool(list(broken_bounds({figure: bound}, ENTRIES, LABELS))) == fails


def test_the_message_has_both_values() -> None:
    assert list(broken_bounds({"rougeL": "<base  -  0.02"}, ENTRIES, LABELS)) == [
        "rougeL is 0.3, and fail_if says < base - 0.02; rougeL of base is 0.35"
    ]


def test_a_model_that_is_not_compared() -> None:
    require_compared({"rougeL": "< runs/old"}, LABELS)
    with pytest.raises(
        DataError, match=r"runs/older is not compared: the compared models are base, runs/old"
    ):
        require_compared({"rougeL": "< runs/older"}, LABELS)
    with pytest.raises(DataError, match=r"base is not compared: no model is compared"):
        require_compared({"rougeL": "< base"}, {})


def test_conditions_are_parsed_and_renamed() -> None:
    assert parse(" <= -.5e1 ") == Bound("<=", -5.0, text="-.5e1")
    assert parse("> runs/a-1 b + .5") == Bound(">", 0.5, "runs/a-1 b", "runs/a-1 b + .5")
    assert parse("> runs/a -1") == Bound(">", -1.0, "runs/a", "runs/a - 1")
    assert [parse(text) for text in ("less", "", "<", "= 3", "base < 1")] == [None] * 5
    assert renamed("<runs/a - 1", {"runs/a": "/x/runs/a"}) == "< /x/runs/a - 1"
    assert renamed("< 0.5", {"0.5": "y"}) == "< 0.5", "the control: a number is no model"
