"""A tracker of another package: the one in docs/extending.md."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tailor.errors import ExtensionError
from tailor.spec.trackers import TrackerSection
from tailor.store import Store
from tailor.track import open_trackers
from tailor.track.figures import curves
from tests.helpers.evaluations import make_recipe
from tests.helpers.extensions import documented, make_distribution


def tailor(folder: Path, package: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, since the keys of a recipe are read from the registry once."""
    found = [str(Path(__file__).parents[2]), *([str(package)] if package else [])]
    return subprocess.run(
        [sys.executable, "-m", "tailor", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documented(tmp_path_factory.mktemp("package"), "A tracker")


@pytest.mark.slow
def test_it_gets_the_records_of_a_training(package: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, more="track: {tensorboard: false, csv: {file: curves.csv}}\n")
    done = tailor(tmp_path, package, "run", str(recipe))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [
        [str(record["step"]), f"{kind}/{key}", str(value)]
        for record in records
        for kind, key, value in curves(record)
    ]
    with (run / "curves.csv").open(newline="") as file:
        assert list(csv.reader(file)) == expected
    assert [row[0] for row in expected if row[1] == "train/loss"] == ["1", "2", "3", "4"]
    assert not (run / "tensorboard").exists()
    refused = tailor(tmp_path, None, "run", str(recipe))
    assert refused.returncode == 2, "the control: the package is not installed"
    assert refused.stderr.endswith("track.csv: unknown key; the keys here are tensorboard, wandb, mlflow\n")


def test_its_keys_are_checked_and_described(package: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, more="track: {csv: {fil: curves.csv}}\n")
    assert (
        "track.csv.fil: unknown key; did you mean file?"
        in tailor(tmp_path, package, "validate", str(recipe)).stderr
    )
    described = tailor(tmp_path, package, "schema", "--reference").stdout
    assert "| `csv` | a section | — | Write the curves to a CSV file. |" in described
    assert "| `file` | text | **required** | Name of the file. |" in described
    assert "csv" not in tailor(tmp_path, None, "schema", "--reference").stdout.partition("## `track`")[2], (
        "control"
    )


def test_an_invalid_section_is_named(tmp_path: Path) -> None:
    points = {"tailor.trackers": {"odd": "odd_module:VALUE"}}
    package = make_distribution(tmp_path / "odd", "odd", {"odd_module.py": "VALUE = 3\n"}, points)
    done = tailor(tmp_path, package, "schema")
    assert done.returncode == 2
    assert done.stderr == (
        "tailor: tailor.trackers: odd is 3, which is not a subclass of tailor.spec.trackers.TrackerSection\n"
        "  hint: let the entry point name a subclass of tailor.spec.trackers.TrackerSection, or uninstall the package "
        "that registers it\n"
    )


class Broken(TrackerSection):
    """A section whose tracker cannot be imported."""

    implementation: ClassVar[str] = "no_such_module:Tracker"
    help: ClassVar[str] = ""


class OneTracker:
    """A section `track` with one tracker."""

    def chosen(self) -> Iterator[tuple[str, TrackerSection]]:
        yield "broken", Broken()


def test_an_implementation_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ExtensionError, match=r"track\.broken: no_such_module:Tracker cannot be loaded: ModuleNotFoundError"
    ):
        open_trackers(OneTracker(), Store(str(tmp_path)))  # type: ignore[arg-type]


def test_the_example_replaces_the_steps_that_are_trained_again(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package))
    from csv_tracker.section import Csv  # type: ignore[import-not-found]
    from csv_tracker.tracker import CsvTracker  # type: ignore[import-not-found]

    run, section = Store(str(tmp_path)), Csv(file="curves.csv")
    steps = []
    for after_step, last in ((0, 4), (2, 5), (0, 2)):
        tracker = CsvTracker(section, run, after_step=after_step, warn=print)
        for step in range(after_step + 1, last + 1):
            tracker.write({"kind": "train", "step": step, "loss": 1.0})
        tracker.close(finished=True)
        with (tmp_path / "curves.csv").open(newline="") as file:
            steps.append([int(row[0]) for row in csv.reader(file)])
    assert steps == [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2]]
