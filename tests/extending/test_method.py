"""A method of another package trains; the documented example is what is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.extending.conftest import Tailor
from tests.helpers.extensions import documented

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documented(tmp_path_factory.mktemp("package"), "A method")


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_a_recipe_trains_with_it(package: Path, workplace: Path, tailor: Tailor) -> None:
    method = "method={name: focal, gamma: 2.0}"
    done = tailor("run", "recipe.yaml", method, "save.to=runs/focal", packages=[package])
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 3/3 +loss", done.stdout)
    plain = tailor("run", "recipe.yaml", "save.to=runs/plain", packages=[package])
    assert plain.returncode == 0, plain.stderr
    # A factor below 1 stands before each token's loss: the same rows, the same weights.
    assert 0 < losses(workplace / "runs" / "focal")[0] < losses(workplace / "runs" / "plain")[0]
    shown = tailor("show", "runs/focal", packages=[package])
    assert "focal" in shown.stdout


def test_its_keys_are_checked_like_built_in_ones(package: Path, tailor: Tailor) -> None:
    wrong = tailor("validate", "recipe.yaml", "method={name: focal, gama: 1}", packages=[package])
    assert wrong.returncode == 2
    assert "method.gama: unknown key" in wrong.stderr
    assert "gamma" in wrong.stderr
    unused = tailor("validate", "recipe.yaml", "method={name: focal, gamma: 0}", packages=[package])
    assert "method.gamma: has no effect at 0: use method sft" in unused.stderr
    assert "gamma" in tailor("schema", packages=[package]).stdout


def test_control_without_the_package_the_name_is_unknown(tailor: Tailor) -> None:
    done = tailor("validate", "recipe.yaml", "method={name: focal}", packages=[])
    assert done.returncode == 2
    assert "method.name" in done.stderr
    assert "focal" in done.stderr
