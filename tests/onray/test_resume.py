"""Resuming with a changed recipe (`save.resume`): what may change, what is recorded, and what stays identical."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tailor.data import epoch_order
from tailor.errors import RecipeError, StoreError
from tailor.layout import ENVIRONMENT, PLAN, STATUS
from tailor.onray import run as running
from tailor.onray.display import Display
from tailor.runs import environment
from tailor.runs.log import of_kind
from tailor.runs.origin import origins
from tailor.runs.report import page
from tailor.spec.load import load_recipe
from tailor.store import Store, run_folder
from tailor.train import checkpoint
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4, dropout: 0.1}}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 128}
method: {name: sft}
optim: {learning_rate: 0.003, schedule: constant}
train: {steps: 4, batch_size: 4, precision: fp32}
evaluate: {every: 2}
save: {to: runs/first, every: 2}
"""


class Shown(Display):
    """A display that records its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def rows(file: Path, count: int) -> None:
    with file.open("w") as stream:
        for i in range(count):
            turns = [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"it is {i}"}]
            stream.write(json.dumps({"messages": turns}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    tiny_llama(place / "base")
    rows(place / "rows.jsonl", 60)
    rows(place / "others.jsonl", 40)
    (place / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train()
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def train(*overrides: str) -> tuple[running.Outcome, list[str]]:
    shown = Shown()
    outcome = running.execute(load_recipe("recipe.yaml", list(overrides)), shown)
    return outcome, shown.lines


def losses(outcome: running.Outcome) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in of_kind(outcome.records, "train")]


def test_more_steps_give_the_curve_of_the_longer_run() -> None:
    whole, _ = train("train.steps=7", "save.to=runs/whole")
    more, lines = train("train.steps=7", "save.to=runs/more", "save.resume=runs/first")
    assert losses(more) == losses(whole)
    assert [r["step"] for r in of_kind(more.records, "evaluation")] == [2, 4, 6, 7]
    first = Store("runs/first")
    assert f"resuming {first.url} from step 4 with a changed recipe:" in lines
    assert "  train.steps: 4 → 7" in lines
    (origin,) = origins(more.run)
    assert (origin.run, origin.step, origin.changes) == (first.url, 4, {"train.steps": [4, 7]})
    adapters = [Path(name) / "adapter" / "adapter_model.safetensors" for name in ("runs/whole", "runs/more")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert run_folder.step_of(run_folder.checkpoints(first)[-1]) == 4, "the first run is unchanged"
    again, _ = train("train.steps=7", "save.to=runs/more", "save.resume=runs/first")
    assert again.already_finished, "the same command finds it finished"


def test_another_learning_rate_in_the_same_folder() -> None:
    train("save.to=runs/place")
    with pytest.raises(StoreError) as caught:
        train("save.to=runs/place", "train.steps=6", "optim.learning_rate=1e-5")
    url = Store("runs/place").url
    assert caught.value.message == (
        f"{url} contains a run with another recipe. These keys differ:\n"
        "  optim.learning_rate: 0.003 in the run, 1e-05 in this recipe\n  train.steps: 4 in the run, 6 in this recipe"
    )
    assert str(caught.value.hint).endswith(f"or set save.resume: {url} to resume with these changes")
    change = ("train.steps=6", "optim.learning_rate=1e-5", "save.to=runs/place", "save.resume=runs/place")
    note, metrics = Path("runs/place/adapter/notes.txt"), Path("runs/place/metrics.jsonl").read_bytes()
    note.write_text("mine")
    with pytest.raises(StoreError, match=r"files that tailor did not write: notes\.txt"):
        train(*change)
    assert Path("runs/place/metrics.jsonl").read_bytes() == metrics, "before training, not after it"
    note.unlink()
    resumed, lines = train(*change)
    assert "  optim.learning_rate: 0.003 → 1e-05" in lines
    records = of_kind(resumed.records, "train")
    assert [(r["step"], r["learning_rate"]) for r in records] == [
        *[(step, 0.003) for step in (1, 2, 3, 4)],
        *[(step, 1e-5) for step in (5, 6)],
    ]
    again, lines = train(*change)
    assert again.already_finished
    assert len(origins(again.run)) == 1
    figures = dict(page.summary(again.run, again.records))
    assert figures["From step 5"].startswith(
        "resumed from this run with optim.learning_rate: 0.003 → 1e-05, train.steps"
    )


def test_weight_decay_is_that_of_the_new_recipe_not_of_the_checkpoint() -> None:
    change = ("train.steps=6", "save.resume=runs/first")
    plain, _ = train(*change, "save.to=runs/plain")
    decayed, _ = train(*change, "save.to=runs/decayed", "optim.weight_decay=50")
    assert losses(plain)[:5] == losses(decayed)[:5]
    assert losses(plain)[5] != losses(decayed)[5]


def test_new_data_starts_from_its_beginning() -> None:
    change = ("data.train=[{path: others.jsonl}]", "train.epochs=1", "train.steps=null")
    alone, _ = train(*change, "save.to=runs/alone")
    on, _ = train(*change, "save.to=runs/on", "save.resume=runs/first")
    plans = [outcome.run.read_json("plan.json") for outcome in (alone, on)]
    assert plans[1]["first_step"] == 4
    assert plans[1]["steps"] == 4 + plans[0]["steps"], "an epoch of the new data, after the four steps"
    tokens = [[r["tokens"] for r in of_kind(outcome.records, "train")] for outcome in (alone, on)]
    assert tokens[1][4:] == tokens[0], "the batches of the new data, in order"
    assert of_kind(on.records, "train")[-1]["epoch"] == 1.0


def test_a_run_whose_version_made_other_batches_is_not_resumed_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run of a version without windows, of which the split now has several."""
    to = "runs/older"
    shutil.copytree("runs/first", to)
    run, url = Store(to), Store(to).url
    older = run.read_json(PLAN)
    assert older.pop("order_version") == 1
    run.write_json(PLAN, older)
    run.write_json(STATUS, {**run.read_json(STATUS), "state": "failed"})
    monkeypatch.setattr(epoch_order, "WINDOW", 20)
    with pytest.raises(StoreError, match="made other batches from the same data") as caught:
        train(f"save.to={to}")
    assert f"set save.resume: {url} to start from the beginning" in str(caught.value.hint)
    assert run.read_json(PLAN) == older
    change = ("train.steps=6", f"save.to={to}", f"save.resume={to}")
    resumed, lines = train(*change)
    assert "  the training data starts from the beginning again" in lines
    assert {key: run.read_json(PLAN)[key] for key in ("order_version", "first_step")} == {
        "order_version": 2,
        "first_step": 4,
    }
    again, lines = train(*change)  # the same order from now on
    assert again.already_finished
    monkeypatch.undo()
    monkeypatch.chdir(Path(url).parents[1])
    shutil.copytree("runs/first", "runs/older-small")  # control: one window is what it was
    Store("runs/older-small").write_json(PLAN, older)
    control, lines = train("train.steps=6", "save.to=runs/older-small", "save.resume=runs/older-small")
    assert control.run.read_json(PLAN)["first_step"] == 0
    assert losses(control)[4:] != losses(resumed)[4:]


def test_new_evaluation_rows_do_not_restart_the_training_data(place: Path) -> None:
    rows(place / "exam.jsonl", 8)
    rows(place / "exam2.jsonl", 9)
    half = ("train.steps=null", "train.epochs=0.5", "data.holdout=null")
    train(*half, "data.evaluation=[{path: exam.jsonl}]", "save.to=runs/half")
    change = ("train.steps=null", "train.epochs=1", "data.holdout=null")
    other = "data.evaluation=[{path: exam2.jsonl}]"
    on, _ = train(*change, other, "save.to=runs/half-on", "save.resume=runs/half")
    whole, _ = train(*change, other, "save.to=runs/half-whole")
    assert on.run.read_json("plan.json")["first_step"] == 0
    assert losses(on) == losses(whole)


def test_the_best_checkpoint_of_the_first_run_stays_the_best() -> None:
    """The evaluation rows are the same. With a very high learning rate every later step is worse."""
    best = ("save.best=true", "evaluate.every=1")
    first, _ = train(*best, "save.to=runs/best")
    evaluated = {r["step"]: r["loss"] for r in of_kind(first.records, "evaluation")}
    wild = ("train.steps=6", "optim.learning_rate=10", "save.to=runs/best-on", "save.resume=runs/best")
    outcome, _ = train(*best, *wild)
    assert run_folder.artifact(outcome.run) == "adapter"
    assert min(r["loss"] for r in of_kind(outcome.records, "evaluation") if r["step"] > 4) > min(
        evaluated.values()
    )
    (message,) = [
        r["message"]
        for r in of_kind(outcome.records, "status")
        if "writing the artifact from" in r["message"]
    ]
    assert f"step {min(evaluated, key=evaluated.__getitem__)}," in message


def test_train_tokens_can_be_increased() -> None:
    tokens = ("train.steps=null", "train.tokens=300")
    train(*tokens, "save.to=runs/counted")
    more, _ = train(
        "train.steps=null", "train.tokens=600", "save.to=runs/counted", "save.resume=runs/counted"
    )
    assert origins(more.run)[0].changes == {"train.tokens": [300, 600]}


def test_the_original_run_is_not_needed_after_the_first_checkpoint(place: Path) -> None:
    import shutil

    train("save.to=runs/parent")
    change = ("train.steps=6", "save.to=runs/child", "save.resume=runs/parent")
    train(*change)
    warm = ("save.to=runs/warm", "model.warm_start=runs/parent")
    train(*warm)
    shutil.rmtree(place / "runs" / "parent")
    assert train(*change)[0].already_finished
    assert train(*warm)[0].already_finished
    with pytest.raises(RecipeError, match=r"model\.warm_start: no such folder"):
        train("save.to=runs/never", "model.warm_start=runs/parent")


def test_keys_that_define_the_weights_cannot_change() -> None:
    for change, key in (
        ("model.adapter.rank=8", "model.adapter.rank: 4 in the run, 8 in this recipe"),
        ("optim.optimizer=sgd", "optim.optimizer: adamw in the run, sgd in this recipe"),
    ):
        with pytest.raises(StoreError) as caught:
            train(change, "train.steps=6", "save.to=runs/other", "save.resume=runs/first")
        assert "cannot be resumed with other values of these keys" in caught.value.message
        assert key in caught.value.message
        assert "model.warm_start" in str(caught.value.hint)


def test_a_run_that_cannot_be_resumed_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"save\.resume: no such folder: runs/frist"):
        train("save.to=runs/other", "save.resume=runs/frist")
    with pytest.raises(StoreError, match=r"has already trained 4 steps, but this recipe ends after 3"):
        train("train.steps=3", "save.to=runs/other", "save.resume=runs/first")
    Store("runs/empty").write_text("recipe.yaml", Path("runs/first/recipe.yaml").read_text())
    with pytest.raises(StoreError, match="which has no checkpoint to resume from"):
        train("save.to=runs/other", "save.resume=runs/empty")


def test_changed_rows_are_an_error_unless_save_resume_is_set(place: Path) -> None:
    rows(place / "growing.jsonl", 40)
    grown = ("data.train=[{path: growing.jsonl}]", "save.to=runs/growing")
    train(*grown)
    Store("runs/growing").remove("status.json")  # as if it had been killed at its last step
    rows(place / "growing.jsonl", 50)
    with pytest.raises(StoreError, match="has checkpoints trained on other data"):
        train(*grown)
    with pytest.raises(StoreError, match="has already trained 4 steps, but this recipe ends after 4"):
        train(
            *grown, "save.resume=runs/growing"
        )  # as the message suggests; the error contains the number of steps
    outcome, lines = train(*grown, "train.steps=6", "save.resume=runs/growing")
    assert outcome.run.read_json("plan.json")["first_step"] == 4
    assert "  the training data starts from the beginning again" in lines


def test_a_signal_during_the_last_checkpoint_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint.write

    def signaled(folder: Path, strategy: Any, state: checkpoint.State) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(folder, strategy, state)

    monkeypatch.setattr(checkpoint, "write", signaled)
    outcome, lines = train("save.to=runs/signaled", "save.every=null")
    assert running.STOPPING in lines
    assert run_folder.checkpoints(outcome.run) == ["step-00000004"]


def test_another_number_of_workers_keeps_the_micro_batch_size() -> None:
    """The default micro-batch size depends on the number of workers, and dropout masks on the micro-batches."""
    from tailor.encode.prepare import prepare
    from tailor.onray.cluster import hardware
    from tailor.onray.planning import make_plan, tokens_root
    from tailor.plan.outline import NOT_BUILT

    first = Store("runs/first")
    assert first.read_json("plan.json")["micro_batch_size"] == 4
    recipe = load_recipe("recipe.yaml", ["scale.workers=4"])
    tokens = prepare(recipe.data, recipe.model, recipe.method, tokens_root(recipe, first)).tokens
    here = hardware(recipe.scale, None)
    assert make_plan(recipe, tokens, first, here, outline=NOT_BUILT).micro_batch_size == 4
    new = make_plan(recipe, tokens, Store("runs/new"), here, outline=NOT_BUILT)
    assert new.micro_batch_size == 1, "the control"
    declared = load_recipe("recipe.yaml", ["scale.workers=4", "train.micro_batch_size=2"])
    assert make_plan(declared, tokens, first, here, outline=NOT_BUILT).micro_batch_size == 2


def test_a_changed_environment_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.differences({}) == []
    assert environment.differences(environment.describe()) == []
    train("save.to=runs/moved")
    run = Store("runs/moved")
    run.write_json(ENVIRONMENT, {**run.read_json(ENVIRONMENT), "python": "3.9.1"})
    _, lines = train("save.to=runs/moved", "train.steps=6", "save.resume=runs/moved")
    at = lines.index("the environment has changed since the start of the run:")
    assert lines[at + 1].startswith("  python: 3.9.1 → 3.")
