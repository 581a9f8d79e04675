"""One recipe with a method, a data format and a tracker of other packages, exported in the form of a fourth."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.extending.conftest import Tailor
from tests.helpers.extensions import documented

pytestmark = pytest.mark.slow

SECTIONS = ("A method", "A data format", "A tracker", "An export form")
OVERRIDES = (
    "method={name: focal}",
    "data.train=[{path: questions.jsonl, format: faq}]",
    "track={tensorboard: false, csv: {file: curves.csv}}",
    "save.to=runs/together",
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The distributions that docs/extending.md shows."""
    return [documented(tmp_path_factory.mktemp("package"), heading) for heading in SECTIONS]


def test_a_recipe_trains_with_all_of_them(packages: list[Path], workplace: Path, tailor: Tailor) -> None:
    rows = [{"title": f"Which size {n}?", "answers": [f"{40 + n}.", "Ask us."]} for n in range(20)]
    (workplace / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tailor("run", "recipe.yaml", *OVERRIDES, packages=packages)
    assert done.returncode == 0, done.stderr
    run = workplace / "runs" / "together"
    assert json.loads((run / "plan.json").read_text())["method"]["name"] == "focal"
    assert json.loads((run / "data.json").read_text())["sources"][0]["format"] == "faq"
    with (run / "curves.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file) if row[1] == "train/loss"] == ["1", "2", "3"]
    exported = tailor("export", "runs/together", "--to", "exported", "--as", "vllm", packages=packages)
    assert exported.returncode == 0, exported.stderr
    assert (workplace / "exported" / "vllm.yaml").read_text() == "max-model-len: 128\n"


@pytest.mark.parametrize("missing", range(3))
def test_control_without_one_package_the_recipe_is_refused(
    packages: list[Path], tailor: Tailor, missing: int
) -> None:
    others = [package for at, package in enumerate(packages) if at != missing]
    done = tailor("validate", "recipe.yaml", *OVERRIDES, packages=others)
    assert done.returncode == 2
    assert ("focal", "faq", "csv")[missing] in done.stderr
