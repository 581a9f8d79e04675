"""`tailor rehearse`: all phases of a recipe, its output, and what it leaves."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tailor.cli.main import main
from tailor.rehearse import reduced
from tailor.rehearse.checks import CHECKS, Check
from tailor.rehearse.rehearsal import rehearsal, temporary_prefix
from tailor.rehearse.rehearse import rehearse
from tailor.spec.load import load_recipe
from tests.rehearse import places
from tests.rehearse.places import METHODS, SFT


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return places.make(tmp_path)


def test_every_phase_of_a_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main(["rehearse", "lora.yaml", "optim.learning_rate=2e-3", "train.epochs=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    checks = {one["check"]: one for one in found["checks"]}
    assert list(checks) == [check.name for check in CHECKS]
    assert {name for name, one in checks.items() if one["status"] != "ok"} == {"cluster"}
    assert checks["resume"]["message"] == "stopped after step 2, resumed with equal losses"
    assert "train.steps=4" in found["overrides"]
    assert "evaluate.final.fail_if={}" in found["overrides"]
    left = " ".join(found["not_rehearsed"])
    assert "scale.strategy: fsdp" in left
    assert "fail_if" in left
    after = [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before, "only what the rehearsal made is gone"


@pytest.mark.soak
@pytest.mark.parametrize("name", METHODS)
def test_every_method(place: Path, name: str) -> None:
    forms = ("huggingface", "sentence-transformers") if name == "gritlm" else ("huggingface",)
    found = places.results(f"{name}.yaml", forms=forms)
    assert {one.check: one.message for one in found.values() if one.status == "failed"} == {}
    assert found["resume"].status == found["export"].status == "ok"
    assert not Path("runs").exists()


def test_a_form_that_cannot_hold_the_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rehearse", "full.yaml", "--as", "sentence-transformers"]
    assert main(words) == 2
    text = capsys.readouterr().out
    failed = [line for line in text.splitlines() if line.startswith("✗")]
    assert len(failed) == 1
    assert " export " in failed[0]
    assert "embed" in failed[0]
    assert "1 failed" in text.splitlines()[-1]


def test_a_resume_that_differs_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tailor.rehearse import checks

    real = checks.losses
    calls: list[int] = []

    def drifted(records: list) -> list[tuple[int, float]]:
        calls.append(1)
        return [(step, loss + (len(calls) == 3 and step == 4)) for step, loss in real(records)]

    monkeypatch.setattr(checks, "losses", drifted)
    found = places.results("full.yaml", until="resume")
    assert found["resume"].status == "failed"
    assert "differs at step 4" in found["resume"].message


def test_a_failed_check_skips_what_depends_on_it_alone(place: Path) -> None:
    def broken(_: object) -> str:
        raise ZeroDivisionError("one\ntwo")

    chain = (
        Check("a", lambda _: "fine", ()),
        Check("b", broken, ("a",)),
        Check("c", lambda _: "never", ("b",)),
        Check("d", lambda _: "never", ("c",)),
        Check("e", lambda _: "fine", ("a",)),
    )
    with rehearsal("lora.yaml", [], None, []) as state:
        found = list(rehearse(state, chain))
    assert [one.status for one in found] == ["ok", "failed", "skipped", "skipped", "ok"]
    assert [one.message for one in found[1:4]] == ["ZeroDivisionError: one two", "needs b", "needs c"]


def test_only_the_rehearsals_own_folders_are_removed(place: Path) -> None:
    recipe = load_recipe("lora.yaml")
    with rehearsal("lora.yaml", [], None, []) as state:
        prefix = Path(temporary_prefix(recipe, state.stack))
        (prefix / "x").write_text("")
        Path("runs/mine.txt").write_text("mine")
    assert [path.name for path in Path("runs").iterdir()] == ["mine.txt"]


def test_memory_and_object_stores_hold_a_rehearsal(place: Path) -> None:
    from tailor.store import Store

    found = places.results("full.yaml", "save.to=memory://rehearsed/run", until="train")
    assert found["train"].status == "ok", found["train"].message
    assert Store("memory://rehearsed").names() == []


def test_sizes_are_cut_by_overrides_of_the_recipe(place: Path) -> None:
    recipe = copy.deepcopy(SFT)
    recipe["optim"] = {"learning_rate": 1e-3, "schedule": "wsd", "warmup_steps": 900, "decay_steps": 500}
    recipe["train"] = {"steps": 5000, "batch_tokens": 65536}
    recipe["data"]["max_length"] = 32768
    loaded = load_recipe(places.write(place, recipe))
    sampled = reduced.with_overrides(loaded, reduced.sample(loaded, whole=False))
    small = reduced.with_overrides(
        sampled, reduced.small(sampled, base="base", prefix="runs/.tmp-x", longest=512)
    )
    assert (small.train.steps, small.train.batch_tokens, small.data.max_length) == (4, 1024, 512)
    assert (small.optim.warmup_steps, small.optim.decay_steps, small.save.every) == (1, 1, 2)
    assert small.method == loaded.method
    assert small.model.adapter == loaded.model.adapter
    assert loaded.train.steps == 5000
