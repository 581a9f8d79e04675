"""How the commands print the folders that they wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.cli.show import shown_path


def test_paths_are_relative_except_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    run = str(tmp_path / "runs" / "my")
    assert shown_path(run) == "runs/my"
    assert shown_path(str(tmp_path.parent)) == str(tmp_path.parent)
    # The log of a job is read on another machine and in another directory.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert shown_path(run) == run
    assert shown_path("s3://bucket/runs/my") == "s3://bucket/runs/my"
