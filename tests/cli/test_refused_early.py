"""What the model does not support is reported before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.families import FAMILIES

ROOT = Path(__file__).parents[2]


class Started(Exception):
    pass


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`tailor run` of the quickstart with two workers, where a start of Ray is an error."""

    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr("tailor.onray.cluster.BackgroundStart", start)
    monkeypatch.chdir(ROOT)
    return ["--debug", "run", "recipes/quickstart.yaml", f"save.to={tmp_path / 'run'}", "scale.workers=2"]


def test_target_modules(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run.remove("--debug")
    assert main([*run, "model.adapter={target_modules: [q_prj]}"]) == 2
    assert "target_modules names q_prj" in capsys.readouterr().err


def test_packed_documents(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.remove("--debug")
    base = FAMILIES["mamba"].make(tmp_path / "mamba")
    assert main([*run, f"model.path={base}"]) == 2
    assert "cannot isolate packed documents: its recurrent layers" in capsys.readouterr().err


def test_the_control_ray_starts_for_a_model_that_can(run: list[str]) -> None:
    with pytest.raises(Started):
        main(run)
