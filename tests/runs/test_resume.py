"""A run resumes only with its own recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.layout import ENVIRONMENT, PLAN
from tailor.runs import resume
from tailor.spec.load import resolved_yaml
from tailor.spec.recipe import Recipe
from tailor.store import Store
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import commit, make_store


def recipe(run: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"path": "base", "adapter": {"rank": 8}},
        "data": {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-3},
        "save": {"to": str(run)},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.model_validate(values)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run of the plain recipe, with a checkpoint."""
    store = Store(str(tmp_path / "run"))
    store.write_text("recipe.yaml", resolved_yaml(recipe(tmp_path / "run")))
    commit(store.join("checkpoints"), "step-00000005", {"state.json": "{}"})
    return store


@pytest.mark.parametrize("mine", ["recipe.yaml", "a.jsonl", "checkpoints", "other/run"])
def test_a_folder_with_other_files_is_rejected(tmp_path: Path, mine: str) -> None:
    run = Store(str(tmp_path / "work"))
    run.write_text(f"{mine}/file" if "." not in mine else mine, "mine")
    with pytest.raises(
        StoreError, match=f"is not empty and not a run folder; it contains {mine.split('/')[0]}"
    ):
        resume.check_folder(recipe(tmp_path / "work"), run)


def test_an_empty_folder_leftovers_and_a_run_are_accepted(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    mine = recipe(tmp_path / "run", data={"store": str(tmp_path / "run" / "cache")})
    resume.check_folder(mine, run)
    (tmp_path / "run").mkdir()
    resume.check_folder(mine, run)
    for name in (".lock", "status.json", "plan.json", "logs/worker-0.log", "tokens/a", "cache/b/c"):
        run.write_text(name, "{}")
    resume.check_folder(mine, run)
    with pytest.raises(StoreError, match="it contains cache"):
        resume.check_folder(recipe(tmp_path / "run"), run)
    run.write_text("recipe.yaml", "")
    run.write_text("loss.png", "")
    resume.check_folder(mine, run)


def test_the_same_recipe_resumes(run: Store, tmp_path: Path) -> None:
    resume.check(recipe(tmp_path / "run"), run)


@pytest.mark.parametrize(
    "sections",
    [
        {"scale": {"workers": 4}},
        {"save": {"every": 3, "keep": 9}},
        {"train": {"micro_batch_size": 2, "activation_checkpointing": True}},
        {"data": {"store": "elsewhere"}},
        {"track": {"tensorboard": False}},
    ],
)
def test_keys_that_do_not_change_the_loss_curve_may_change(
    run: Store, tmp_path: Path, sections: dict[str, Any]
) -> None:
    resume.check(recipe(tmp_path / "run", **sections), run)


def test_another_recipe_is_rejected_with_all_keys_that_differ(run: Store, tmp_path: Path) -> None:
    other = recipe(
        tmp_path / "run",
        model={"adapter": {"rank": 16}},
        data={"train": [{"path": "a.jsonl"}, {"path": "c.jsonl", "limit": 7}]},
        scale={"workers": 2},
    )
    with pytest.raises(StoreError) as caught:
        resume.check(other, run)
    assert caught.value.message == (
        f"{run.url} contains a run with another recipe. These keys differ:\n"
        "  data.train[1].limit: not set in the run, 7 in this recipe\n"
        "  data.train[1].path: b.jsonl in the run, c.jsonl in this recipe\n"
        "  model.adapter.rank: 8 in the run, 16 in this recipe"
    )


def test_a_removed_section_is_named(run: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"model\.adapter"):
        resume.check(recipe(tmp_path / "run", model={"adapter": None}), run)


def test_an_attempt_without_a_checkpoint_may_be_replaced(run: Store, tmp_path: Path) -> None:
    other = recipe(tmp_path / "run", optim={"learning_rate": 0.5})
    with pytest.raises(StoreError):
        resume.check(other, run)
    run.remove("checkpoints")
    resume.check(other, run)


def test_never_rejects_every_folder_with_a_run(run: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"save\.resume is never"):
        resume.check(recipe(tmp_path / "run", save={"resume": "never"}), run)
    resume.check(recipe(tmp_path / "new", save={"resume": "never"}), Store(str(tmp_path / "new")))


def test_checkpoints_with_other_data_or_precision_are_not_resumed(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    plan = make_plan(model, make_store(tmp_path / "tokens", [20] * 8), tmp_path / "run")
    run = Store(str(tmp_path / "run"))
    run.write_json(PLAN, plan.as_dict())
    other = dataclasses.replace(plan, fingerprint="other")
    resume.check_plan(other, run)  # without a checkpoint nothing is lost
    commit(run.join("checkpoints"), "step-00000003", {"state.json": "{}"})
    resume.check_plan(plan, run)
    with pytest.raises(StoreError, match="checkpoints trained on other data"):
        resume.check_plan(other, run)
    before = plan.as_dict()
    del before["order_version"]  # of an earlier version
    run.write_json(PLAN, before)
    resume.check_plan(plan, run)
    run.write_json(ENVIRONMENT, {"tailor": "0.1.2"})
    with pytest.raises(StoreError, match="made other batches from the same data") as caught:
        resume.check_plan(dataclasses.replace(plan, order_version=2), run)
    assert str(caught.value.hint).startswith("resume it with tailor 0.1.2, set another save.to")
    with pytest.raises(StoreError, match="trained with precision fp32, but the plan has bf16"):
        resume.check_plan(dataclasses.replace(plan, precision="bf16"), run)
