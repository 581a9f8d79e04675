"""A finished run with every kind of file, and the ways to damage one of its files."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tailor.cli.main import main
from tests.helpers.fuzzing import broken
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {{path: {base}, adapter: {{rank: 2}}}}
data: {{train: [{{path: {rows}}}], holdout: 0.2, max_length: 64, template: chatml}}
method: {{name: sft}}
optim: {{learning_rate: 0.003}}
train: {{steps: 2, batch_size: 2, precision: fp32}}
evaluate: {{generation: {{limit: 2, max_new_tokens: 2, samples: 1}}}}
save: {{to: {run}, every: 1}}
"""
FILES = (
    "status.json", "plan.json", "metrics.jsonl", "data.json", "environment.json", "recipe.yaml", "origin.json",
    ".lock", "evaluation/after.jsonl", "evaluation/before.jsonl", "evaluation/default/results.json",
    "evaluation/default/answers.jsonl", "evaluation/default/COMMIT", "adapter/COMMIT", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors", "adapter/base.json", "adapter/generation_config.json",
    "adapter/tokenizer.json", "adapter/tokenizer_config.json", "adapter/chat_template.jinja",
    "checkpoints/step-00000002/state.json", "checkpoints/step-00000002/COMMIT",
    "checkpoints/step-00000002/optimizer.pt", "checkpoints/step-00000002/weights.safetensors", "../tokens/manifest.json",
)  # fmt: skip
COMMANDS = (
    "runs {folder}",
    "show {run}",
    "plan {run}/recipe.yaml",
    "validate {run}/recipe.yaml",
    "data report {run}/recipe.yaml",
    "generate {run} --prompt Hi --max-new-tokens 1",
    "chat {run} --max-new-tokens 1",
    "merge {run} --to {out}",
    "average {run} {run} --to {out}",
    "average {run}/checkpoints/step-00000001 {run}/checkpoints/step-00000002 --to {out}",
    "export {run} --to {out}",
    "export {run}/checkpoints/step-00000002 --to {out}",
    "push {run} me/shop --dry-run",
    "evaluate {run} limit=1 decoding.max_new_tokens=1 --to {out}",
    "embed {run} {rows} {out}.parquet",
    "run {recipe}",
    "run {recipe} save.resume={run} save.to={out} train.steps=3",
    "run {recipe} model.warm_start={run} save.to={out} train.steps=1",
    "run {recipe} model.warm_start={run}/checkpoints/step-00000002 save.to={out} train.steps=1",
    "run {run}/recipe.yaml",
)


def make_run(folder: Path) -> Path:
    """A run of two steps with checkpoints, answers, an adapter and an evaluation."""
    tiny_llama(folder / "base")
    turns = (
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i)}] for i in range(12)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    run = folder / "runs" / "odd"
    (folder / "recipe.yaml").write_text(
        RECIPE.format(base=folder / "base", rows=folder / "rows.jsonl", run=run)
    )
    assert command(f"run {folder}/recipe.yaml")[0] == 0
    assert command(f"evaluate {run} limit=1 decoding.max_new_tokens=1")[0] == 0
    change = {
        "run": str(run),
        "step": 1,
        "checkpoint": "x",
        "changes": {"train.steps": [1, 2]},
        "first_step": 0,
    }
    (run / "origin.json").write_text(json.dumps({"format_version": 1, "origins": [change]}))
    return run


def command(line: str) -> tuple[int, str]:
    """Run a command in this process. Returns its exit code and its error output."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "stdin", io.StringIO("Hi\n")):
        code = main(line.split())
    return code, err.getvalue()


def _other_version(content: bytes) -> bytes:
    values = json.loads(content.split(b"\n")[0] if b'"kind"' in content else content)
    return json.dumps({**values, "format_version": 99}).encode() + b"\n"


def _broken(seed: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        chance = random.Random(seed)
        try:
            return json.dumps(broken(json.loads(content), chance)).encode()
        except ValueError:
            pass
        try:
            lines = [json.loads(line) for line in content.splitlines()]
            return b"".join(json.dumps(line).encode() + b"\n" for line in broken(lines, chance))
        except (ValueError, TypeError):
            start = chance.randrange(max(1, len(content)))
            return content[:start] + b"\x00\xff{" + content[start + 3 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "blank": lambda content: b"  \n",
    "binary": lambda content: b"\xff\xfe\x00\x80" * 20,
    "null": lambda content: b"null\n",
    "list": lambda content: b"[1]\n",
    "object": lambda content: b"{}\n",
    "text": lambda content: b'"text"\n',
    "deep": lambda content: b"[" * 100_000,
    "foreign": lambda content: b'{"kind": "train", "name": "x", "files": 3, "model": [], "step": "x"}\n',
    "folder": lambda content: None,
    **{f"broken {seed}": _broken(seed) for seed in range(12)},
}


@contextmanager
def damaged(folder: Path, name: str, damage: str) -> Iterator[Path]:
    """A copy of `folder` in which one file of the run is damaged, in agreement with its COMMIT file. Yields the run."""
    copy = folder.with_name(folder.name + "-damaged")
    shutil.copytree(folder, copy)
    run = copy / "runs" / "odd"
    for file in copy.rglob("*"):  # the paths inside the files
        if file.suffix in (".json", ".jsonl", ".yaml") and file.is_file():
            file.write_text(file.read_text().replace(f"{folder}/", f"{copy}/"))
    for marker in copy.rglob("COMMIT"):
        _seal(marker)
    file = next((run.parent / "tokens").glob("*")) / "manifest.json" if name.startswith("..") else run / name
    content = _other_version(file.read_bytes()) if damage == "newer" else DAMAGES[damage](file.read_bytes())
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    if file.name != "COMMIT" and (file.parent / "COMMIT").is_file():
        _seal(file.parent / "COMMIT")
    try:
        yield run
    finally:
        shutil.rmtree(copy)


def _seal(marker: Path) -> None:
    values: dict[str, Any] = json.loads(marker.read_text())
    for name in list(values["files"]):
        file = marker.parent / name
        if file.is_file():
            content = file.read_bytes()
            values["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    marker.write_text(json.dumps(values))
