"""A run that resumes from its last complete checkpoint equals one that never stopped."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import StoreError, TrainingError
from tailor.store import Store, run_folder
from tailor.train import checkpoint, loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"adapter": {**LORA, "dropout": 0.1}},
    "optim": {"schedule": "cosine", "warmup_steps": 2},
    "save": {"every": 2, "keep": 2},
    "evaluate": {"every": 3},
}


class Stopped(Exception):
    pass


class StoppingHost(PlainHost):
    """Dies after its `after`-th step was reported."""

    after = 5

    def report(self, record: dict[str, Any]) -> None:
        super().report(record)
        if record["kind"] == "train" and record["step"] == self.after:
            raise Stopped


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("resume")
    return tiny_llama(folder / "model"), make_store(
        folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30]
    )


QUANTIZED = {"adapter": {**LORA, "dropout": 0.1}, "quantize": {"type": "nf4"}}


@pytest.mark.parametrize(
    ("optimizer", "model", "method"),
    [
        ("adamw", SECTIONS["model"], "sft"),
        ("adamw_8bit", SECTIONS["model"], "sft"),
        ("adafactor", SECTIONS["model"], "sft"),
        ("adamw", QUANTIZED, "sft"),
        ("lion", {}, "sft"),
        ("adamw", SECTIONS["model"], "pretrain"),
    ],
    ids=["lora", "lora, 8-bit optimizer", "lora, adafactor", "qlora", "full, lion", "pretrain, lora"],
)
def test_stopped_and_gone_on_equals_undisturbed(
    made: tuple[Path, Any], tmp_path: Path, optimizer: str, model: dict[str, Any], method: str
) -> None:
    optim = {**SECTIONS["optim"], "optimizer": optimizer}
    sections = {**SECTIONS, "model": model, "optim": optim, "method": {"name": method}}
    whole = PlainHost()
    loop.run(make_plan(*made, tmp_path / "whole", **sections), whole)
    plan = make_plan(*made, tmp_path / "run", **sections)
    with pytest.raises(Stopped):
        loop.run(plan, StoppingHost())
    again = PlainHost(resume_from=plan.run_url)
    loop.run(plan, again)
    assert [record["step"] for record in again.of("train")] == [5, 6]
    assert again.losses() == whole.losses()[4:]
    assert again.evaluations() == whole.evaluations()[1:]
    file = "adapter/adapter_model.safetensors" if model else "model/model.safetensors"
    artifacts = [tmp_path / name / file for name in ("whole", "run")]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()


def test_control_without_the_optimizer_state_it_differs(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PlainHost()
    loop.run(make_plan(*made, tmp_path / "whole", **SECTIONS), whole)
    plan = make_plan(*made, tmp_path / "run", **SECTIONS)
    with pytest.raises(Stopped):
        loop.run(plan, StoppingHost())
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    again = PlainHost(resume_from=plan.run_url)
    loop.run(plan, again)
    assert again.losses() != whole.losses()[4:]


def test_newest_are_kept_and_a_half_one_does_not_count(made: tuple[Path, Any], tmp_path: Path) -> None:
    plan = make_plan(*made, tmp_path / "run", **SECTIONS)
    loop.run(plan, PlainHost())
    run = Store(plan.run_url)
    assert run_folder.checkpoints(run) == ["step-00000004", "step-00000006"]
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "COMMIT").unlink()
    latest = run_folder.latest_checkpoint(run)
    assert latest is not None
    assert latest.endswith("step-00000004")


def test_best_by_evaluation_loss_is_kept_and_becomes_the_artifact(
    made: tuple[Path, Any], tmp_path: Path
) -> None:
    sections = {
        **SECTIONS,
        "model": {},
        "optim": {"learning_rate": 1.0},  # so high that every step after the first is worse
        "save": {"every": 2, "keep": 1, "best": True},
        "evaluate": {"every": 1},
    }
    plan = make_plan(*made, tmp_path / "run", **sections)
    host = PlainHost()
    loop.run(plan, host)
    evaluations = host.of("evaluation")
    best = min(evaluations, key=lambda record: record["loss"])["step"]
    assert best != 6, "the control: the last is not the best"
    run = Store(plan.run_url)
    assert run_folder.checkpoints(run) == [run_folder.checkpoint_name(best), run_folder.checkpoint_name(6)]
    from safetensors.torch import load_file

    kept = load_file(
        tmp_path / "run" / "checkpoints" / run_folder.checkpoint_name(best) / "weights.safetensors"
    )
    artifact = load_file(tmp_path / "run" / "model" / "model.safetensors")
    ours = {name.removeprefix("network."): value for name, value in kept.items()}
    assert ours.keys() == artifact.keys()
    assert all(torch.equal(ours[name], artifact[name]) for name in ours)


def test_checkpoint_of_another_adapter_is_rejected(made: tuple[Path, Any], tmp_path: Path) -> None:
    loop.run(make_plan(*made, tmp_path / "run", **SECTIONS), PlainHost())
    other = {**SECTIONS, "model": {"adapter": {**LORA, "target_modules": ["q_proj"]}}}
    with pytest.raises(StoreError, match="do not match those that this recipe trains"):
        loop.run(make_plan(*made, tmp_path / "run", **other), PlainHost(resume_from=str(tmp_path / "run")))


def test_a_checkpoint_cannot_run_code(made: tuple[Path, Any], tmp_path: Path) -> None:
    plan = make_plan(*made, tmp_path / "run", **SECTIONS)
    loop.run(plan, PlainHost())
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    latest = run_folder.latest_checkpoint(Store(plan.run_url))
    assert latest is not None
    file = Path(latest) / "optimizer.pt"
    torch.save({"state": Bomb()}, file)
    with pytest.raises(StoreError, match=rf"^{file} has \d+ bytes instead of \d+; .* or remove {latest}"):
        loop.run(plan, PlainHost(resume_from=plan.run_url))
    # Nor where whoever put it there changed the marker too.
    listed = json.loads((Path(latest) / "COMMIT").read_text())
    listed["files"]["optimizer.pt"] = {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    (Path(latest) / "COMMIT").write_text(json.dumps(listed))
    with pytest.raises(
        StoreError, match=rf"^{file} is not a valid optimizer state file: Weights only load failed"
    ):
        loop.run(plan, PlainHost(resume_from=plan.run_url))
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "the control: it is a bomb"


def test_a_loss_that_is_no_number_stops_the_run(made: tuple[Path, Any], tmp_path: Path) -> None:
    plan = make_plan(*made, tmp_path / "run", optim={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"step \d: the loss is (nan|inf).* source 0 row"):
        loop.run(plan, PlainHost())


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_damaged_file_is_named_wherever_a_checkpoint_is_read(
    finished: Path, made: tuple[Path, Any], tmp_path: Path, file: str, damage: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    content = (folder / file).read_bytes()
    if damage == "missing":
        (folder / file).unlink()
    else:
        changed = content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:]
        (folder / file).write_bytes(changed)
    expected = {
        "cut": r"has \d+ bytes instead of \d+",
        "altered": "its checksum differs",
        "missing": "is missing",
    }
    plan = make_plan(*made, tmp_path / "run", **SECTIONS)
    warm = {**SECTIONS, "model": {**SECTIONS["model"], "warm_start": str(folder)}}
    network = torch.nn.Linear(1, 1)
    reads = [
        lambda: loop.run(plan, PlainHost(resume_from=plan.run_url)),
        lambda: checkpoint.load_weights(str(folder), network),
    ]
    if (file, damage) != (
        "weights.safetensors",
        "missing",
    ):  # what has no weights is no checkpoint to begin from
        reads.append(lambda: loop.run(make_plan(*made, tmp_path / "new", **warm), PlainHost()))
    for read in reads:
        with pytest.raises(StoreError) as caught:
            read()
        assert re.match(f"{folder / file} .*{expected[damage]}", caught.value.message), caught.value.message


def test_intact_files_with_wrong_contents_are_named(
    finished: Path, made: tuple[Path, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    plan = make_plan(*made, tmp_path / "run", **SECTIONS)
    for file, content in (("state.json", '{"step": "six"}'), ("weights.safetensors", "{}")):
        (folder / file).write_text(content)
        listed = json.loads((folder / "COMMIT").read_text())
        listed["files"][file] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }
        (folder / "COMMIT").write_text(json.dumps(listed))
        with pytest.raises(
            StoreError, match=rf"^{folder}/{file} is (damaged: step|not a valid safetensors file): "
        ):
            loop.run(plan, PlainHost(resume_from=plan.run_url))


@pytest.fixture(scope="module")
def finished(made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody writes to."""
    run = tmp_path_factory.mktemp("finished") / "run"
    loop.run(make_plan(*made, run, **SECTIONS), PlainHost())
    return run
