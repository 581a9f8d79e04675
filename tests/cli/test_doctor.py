"""`tailor doctor`: text, JSON and exit codes. The checks themselves are tested in tests/doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.spec.helpers import GOOD, write


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tailor.doctor.checks.gpu.has_device", lambda: False)
    for name in ("RAY_ADDRESS", "FORCE_COLOR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--offline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       versions  tailor ")
    assert lines[-1].startswith("0 failed, ")
    assert list(Path().iterdir()) == [Path("r.yaml")], "nothing is written"


def test_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "r.yaml", "--offline", "--json", "save.to=memory://x/y", "scale.gpu=true"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 1
    by_check = {one["check"]: one for one in found["findings"]}
    assert by_check["recipe"]["message"] == "r.yaml is valid"
    assert by_check["gpu"]["status"] == "failed"
    assert by_check["gpu"]["hint"]
    assert by_check["hub"]["message"].endswith("org/rows is not in the hub's cache; not tried, offline")
    assert by_check["stores"]["status"] == "ok"


def test_a_recipe_with_problems_does_not_end_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(), GOOD.replace("2e-4", "-1"), name="bad.yaml")
    for words in (["bad.yaml"], ["none.yaml"]):
        assert main(["doctor", *words, "--offline"]) == 2
        text = capsys.readouterr().out
        assert text.startswith("failed   recipe    ")
        assert "\nok       memory    " in text
        assert "hint: see `tailor validate`" in text


def test_a_run_to_make_first(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(), GOOD.replace("runs/x", "runs/first"), name="first.yaml")
    assert main(["doctor", "r.yaml", "model.warm_start=runs/first", "--offline"]) == 0
    assert "hint: run first.yaml first" in capsys.readouterr().out
