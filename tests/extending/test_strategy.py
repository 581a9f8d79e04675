"""A strategy of another package trains; the documented example is what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extending.conftest import Tailor
from tests.extending.test_method import losses
from tests.helpers.extensions import documented

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documented(tmp_path_factory.mktemp("package"), "A strategy")


@pytest.mark.soak
def test_two_workers_train_with_it(package: Path, workplace: Path, tailor: Tailor) -> None:
    shared = ["run", "recipe.yaml", "train.micro_batch_size=1"]
    done = tailor(
        *shared, "scale={workers: 2, strategy: bf16_reduce}", "save.to=runs/bf16", packages=[package]
    )
    assert done.returncode == 0, done.stderr
    plain = tailor(*shared, "save.to=runs/ddp", packages=[package])
    assert plain.returncode == 0, plain.stderr
    rounded, exact = losses(workplace / "runs" / "bf16"), losses(workplace / "runs" / "ddp")
    assert rounded == pytest.approx(exact, rel=1e-3)
    assert rounded[-1] != exact[-1], "the control: gradients were rounded to bf16"


def test_the_plan_and_the_rules_know_it(package: Path, tailor: Tailor) -> None:
    scale = "scale={workers: 2, strategy: bf16_reduce}"
    plan = tailor("plan", "recipe.yaml", scale, "save.to=runs/plan", packages=[package])
    assert plan.returncode == 0, plan.stderr
    assert "strategy      bf16_reduce: set by the recipe" in plan.stdout
    unknown = tailor(
        "validate", "recipe.yaml", "scale={workers: 2, strategy: bf16_reduse}", packages=[package]
    )
    assert unknown.returncode == 2
    assert "bf16_reduce" in unknown.stderr
