"""The examples of docs/python.md run, one after the other, on a run of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks
from tests.helpers.evaluations import make_recipe


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace(str(tmp_path / "runs" / "tiny"), "runs/my"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = [text for _, text, _ in blocks((ROOT / "docs" / "python.md").read_text(), "python")]
    assert len(examples) == 4
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert f"{tmp_path}/runs/my finished {tmp_path}/runs/my/adapter" in out
    assert "command line: optim.learning_rat: unknown key; did you mean learning_rate?" in out
    assert names["columns"]["loss"] == names["losses"]  # type: ignore[index]
    assert len(names["answers"]) == 2  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        exec(compile("run.summary()['Nothing']", "control", "exec"), names)
