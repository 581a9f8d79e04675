"""A model folder, a data file and a token store, and the call that prepares it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tailor.data.token_store import TokenStore
from tailor.encode.prepare import Prepared, prepare
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer


def talk(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} and {number}?"},
            {"role": "assistant", "content": f"It is {2 * number}."},
        ]
    }


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


class Bench:
    """A model folder, a data file and a token store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = byte_tokenizer(folder / "model")
        self.rows = write(folder / "rows.jsonl", [talk(n) for n in range(200)])
        self.store = str(folder / "tokens")

    def __call__(
        self,
        *,
        train_on: str = "assistant",
        method: Method | None = None,
        store: str | None = None,
        **data: Any,
    ) -> Prepared:
        method = method or Sft(name="sft", train_on=train_on)
        data = {"train": [{"path": self.rows}], "template": "chatml", "max_length": 256, **data}
        return prepare(Data(**data), Model(path=str(self.model)), method, store or self.store)


def contents(tokens: TokenStore, split: str = "train") -> list[tuple[int, int, list[int], list[list[int]]]]:
    part = tokens.split(split)
    return [
        (
            int(part.source[i]),
            int(part.row[i]),
            part.example(i).input_ids.tolist(),
            part.example(i).spans.tolist(),
        )
        for i in range(len(part))
    ]


def texts(folder: Path, count: int = 30) -> str:
    return write(folder / "texts.jsonl", [{"text": f"Text {n}: " + "sew " * n} for n in range(count)])
