"""A trained run small enough for every test of evaluation, and a display that keeps what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tailor.onray.display import Display
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {{path: {base}, adapter: {{rank: 4}}}}
data: {{train: [{{path: {rows}}}], holdout: 0.3, max_length: 128}}
method: {{name: sft}}
optim: {{learning_rate: 0.01}}
train: {{steps: {steps}, batch_size: 4, precision: fp32}}
save: {{to: {run}}}
"""


class Shown(Display):
    """Takes the place of the display."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None:
        self.progress.append((done, total))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def make_recipe(folder: Path, *, steps: int = 4, more: str = "") -> Path:
    """A recipe of a tiny model and sixty conversations, for a run at `folder/runs/tiny`."""
    if not (folder / "base").exists():
        tiny_llama(folder / "base", max_position_embeddings=256)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": f"It is {number % 3}."},
            ]
        }
        for number in range(60)
    ]
    write_rows(folder / "rows.jsonl", rows)
    recipe = folder / "recipe.yaml"
    text = RECIPE.format(
        base=folder / "base", rows=folder / "rows.jsonl", run=folder / "runs" / "tiny", steps=steps
    )
    recipe.write_text(text + more)
    return recipe
