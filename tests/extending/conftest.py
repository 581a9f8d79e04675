"""A folder with a tiny base and rows, and the command line in it, with packages on its path."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import completed
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 128}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 3, batch_size: 2, precision: fp32}
save: {to: runs/first}
"""
Tailor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, rows.jsonl and recipe.yaml."""
    folder = tmp_path_factory.mktemp("extending")
    tiny_llama(folder / "base")
    turns = [{"role": "user", "content": "{}?"}, {"role": "assistant", "content": "<{}>"}]
    rows = [
        {"messages": [{**turn, "content": turn["content"].format(i)} for turn in turns]} for i in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def tailor(workplace: Path) -> Tailor:
    """Runs the command in the folder: `tailor("run", …, packages=[folders with distributions])`."""

    def run(*arguments: str, packages: list[Path]) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([os.getcwd(), *map(str, packages)])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        return completed(arguments, cwd=workplace, env=environment)

    return run
