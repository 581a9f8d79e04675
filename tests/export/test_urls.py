"""Every command after training works on a run in a remote store as on a local one."""

from __future__ import annotations

import io
import json
import sys
import uuid
from pathlib import Path

import pytest

from tailor.cli.main import main
from tailor.store import Store
from tests.helpers.evaluations import write_rows


def test_a_run_in_memory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = f"memory://{uuid.uuid4().hex}"
    there, made = Store(f"{root}/run"), Store(root)
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name != ".lock":
            there.put_file(path, path.relative_to(run).as_posix())
    before = set(made.names())
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Hi", "facts": ["nothing"]}])
    suite = f"tasks=[{{name: facts, data: {{path: {facts}}}}}]"

    def out(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        assert main(arguments) == code
        return capsys.readouterr().out

    for at in (str(run), there.url):  # the first is the control
        to = f"{root}/of-{'memory' if at == there.url else 'disk'}"
        answered = [
            out("generate", at, "--prompt", "Hi", "--max-new-tokens", "4"),
            out("chat", at, "--max-new-tokens", "4"),
        ]
        out("evaluate", at, suite, "decoding.max_new_tokens=4", "--to", f"{to}/evaluation")
        out("merge", at, "--to", f"{to}/merged")
        out("average", at, f"{at}/checkpoints/step-00000006", "--to", f"{to}/mean")
        out("export", at, "--to", f"{to}/export", "--base-id", "me/base")
        answered.append(out("push", at, "me/shop", "--dry-run", "--weights", "merged"))
        made.write_json(f"{to.rsplit('/', 1)[1]}.json", answered)
    local, remote = (json.loads(made.read_text(f"of-{place}.json")) for place in ("disk", "memory"))
    assert local[:2] == remote[:2]
    assert local[2].splitlines()[2:] == remote[2].splitlines()[2:], "the files that would go"
    for folder, file in (
        ("merged", "model.safetensors"),
        ("mean", "adapter_model.safetensors"),
        ("export", "README.md"),
        ("evaluation", "facts.jsonl"),
    ):
        contents = [made.read_bytes(f"of-{place}/{folder}/{file}") for place in ("disk", "memory")]
        if folder == "evaluation":  # the model is named by its folder: `run` in both
            contents = [content.replace(b'"run"', b"") for content in contents]
        assert contents[0] == contents[1], folder
        assert made.is_committed(f"of-memory/{folder}")
    out("evaluate", there.url, suite, "decoding.max_new_tokens=4", "name=kept")
    out("merge", there.url)
    assert there.is_committed("evaluation/kept")
    assert there.is_committed("merged")
    assert "Evaluation kept" in out("show", there.url)
    assert {*made.names()} - before == {"of-disk", "of-disk.json", "of-memory", "of-memory.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl"], (
        "nothing is written to the working directory"
    )
