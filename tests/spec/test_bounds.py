"""Error reports are short, and large files with many mistakes take time in proportion to their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.errors import MAX_PROBLEMS, Problem, RecipeError
from tailor.spec.load import load_recipe
from tests.helpers.operations import grows_linearly
from tests.spec.helpers import GOOD, write


def _error(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value


CASES = {
    "unknown sections": lambda count: GOOD + "".join(f"key{number}: 1\n" for number in range(count)),
    "similar keys": lambda count: GOOD.replace(
        "optim: {learning_rate: 2e-4}\n",
        "optim:\n" + "".join(f"  lerning_rate{number}: 1\n" for number in range(count)),
    ),
    "duplicate keys": lambda count: GOOD + "a: 1\n" * count,
    "equal list items": lambda count: (
        GOOD + "x: 1\n" + "data2: [" + ", ".join(f"a{number}" for number in range(count)) + "]\n"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_time_is_linear(case: str, tmp_path: Path) -> None:
    """40 000 unknown keys took 15 s."""

    def report(count: int) -> None:
        assert len(_error(write(tmp_path, CASES[case](count))).problems) <= MAX_PROBLEMS

    report(10)  # what is made at the first use, such as schemas
    assert grows_linearly(report, 500)


def test_the_count_sees_quadratic_work() -> None:
    """The control."""
    assert grows_linearly(lambda size: sum(1 for _ in range(size)), 100)
    assert not grows_linearly(lambda size: sum(1 for _ in range(size) for _ in range(size)), 100)


def test_a_report_shows_the_first_problems(tmp_path: Path) -> None:
    error = _error(write(tmp_path, GOOD + "".join(f"key{number}: 1\n" for number in range(60))))
    assert len(error.problems) == MAX_PROBLEMS == 50
    assert error.omitted == 10
    assert error.message.splitlines()[-1].endswith("10 more problems are not shown")
    assert error.problems == sorted(error.problems)


def test_keys_and_messages_are_short() -> None:
    (problem,) = RecipeError(
        [Problem("r.yaml", 1, 1, "k" * 10_000, f"{'x' * 10_000} is wrong; write y")]
    ).problems
    assert len(problem.key) <= 100
    assert len(problem.message) < 300
    assert problem.message.endswith("is wrong; write y")


@pytest.mark.parametrize(
    "override",
    [
        ".".join("a" * 20_000) + "=1",
        ".".join("a" * 39) + "=" + "[" * 39 + "]" * 39,
        "9" * 5000 + "=1",
        "train.steps=" + "1" * 5000,
        "a" * 5000 + "=1",
        "a" * 5000,
        "x.²=1",
    ],
    ids=["deep", "deep value", "digits", "long number", "long key", "no override", "superscript"],
)
def test_odd_overrides(override: str, tmp_path: Path) -> None:
    error = _error(write(tmp_path, GOOD), override)
    assert len(error.message) < 1000


def test_extending_a_large_file_is_linear(tmp_path: Path) -> None:
    """Each key of the file searched all keys of its base."""

    def report(count: int) -> None:
        keys = "".join(f"key{number}: 1\n" for number in range(count))
        (tmp_path / "large.yaml").write_text(GOOD + keys)
        assert _error(write(tmp_path, f"extends: large.yaml\n{keys}")).omitted > count - 100

    report(100)
    assert grows_linearly(report, 500)
