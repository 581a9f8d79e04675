from __future__ import annotations

from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.spec.helpers import GOOD, write


def test_many_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name="good.yaml")
    write(tmp_path, GOOD.replace("2e-4", "-1"), name="bad.yaml")
    assert main(["validate", "bad.yaml", "good.yaml", "none.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "good.yaml: ok\n"
    assert printed.err == (
        "bad.yaml:5:24: optim.learning_rate: -1 is not a number over 0\nnone.yaml: no such file\n"
    )
    assert main(["validate", "good.yaml"]) == 0


def test_overrides_hold_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD.replace("2e-4", "-1"), name="bad.yaml")
    assert main(["validate", "bad.yaml", "optim.learning_rate=1e-4"]) == 0
    assert main(["validate", "bad.yaml", "optim.learning_rate=-2"]) == 2
    assert main(["validate", "optim.learning_rate=-2"]) == 2
    assert capsys.readouterr().err == (
        "command line: optim.learning_rate: -2 is not a number over 0\n"
        "tailor: no recipe file was given, only overrides\n"
    )
