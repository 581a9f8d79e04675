"""Shared by the tests of this folder: a tiny model, tokens, and a local Ray instance with two CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailor.onray.cluster import Cluster, connect
from tailor.plan import Plan
from tailor.spec.recipe import Recipe
from tailor.spec.scale import Scale
from tests.helpers.evaluations import make_place
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

Make = Callable[..., tuple[Plan, Recipe]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny_llama(folder / "model")
    make_store(folder / "tokens", [20 + i % 30 for i in range(60)], evaluation=[20] * 5)
    return folder


@pytest.fixture
def make(material: Path) -> Make:
    """Makes (plan, recipe) of a run in a folder, with sections of a recipe."""
    from tailor.data.token_store import TokenStore

    def made(run: str | Path, **sections: Any) -> tuple[Plan, Recipe]:
        tokens = TokenStore.open(str(material / "tokens"))
        plan = make_plan(material / "model", tokens, run, **sections)  # type: ignore[arg-type]
        recipe = {
            "model": {"path": str(material / "model")},
            "data": {"train": [{"path": "unused"}]},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-3},
            "save": {"to": str(run)},
        }
        return plan, Recipe.model_validate({**recipe, "scale": sections.get("scale", {})})

    return made


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A local Ray instance with two CPUs, whatever the machine has."""
    import ray

    from tailor import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "cpus", lambda: 2)
        yield connect(Scale(workers=2))
    ray.shutdown()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `runs/tiny`, and evaluation rows."""
    return make_place(tmp_path_factory.mktemp("place"))
