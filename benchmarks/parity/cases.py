"""What is compared: recipes, their rows, TRL's trainer for each, and the mistakes that the comparison must find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
CONVERSATIONS = HERE.parents[1] / "recipes" / "quickstart" / "train.jsonl"

Mistake = Literal["mask", "unquantized", "beta", "kl_batch"]
"""A wrong setting of TRL's side: the mask of supervised tokens one token late, nf4 weights left as they are, another
beta, or the KL batch with other pairs of prompt and answer."""

LORA = {"rank": 8, "alpha": 16.0}
PREFERENCE = {"learning_rate": 1e-4, "schedule": "linear"}


@dataclass(frozen=True)
class Case:
    """A comparison of five or more optimizer steps."""

    rows: Literal["conversations", "pairs", "answers"]
    trainer: str
    """TRL's trainer."""
    mistakes: tuple[Mistake, ...]
    method: dict[str, Any]
    optim: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    pack: bool = False
    """Packed, a step has all rows, for TRL needs the same number of them in every step."""

    def write_rows(self, path: Path) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[self.rows](8 if self.pack else 20)))

    def recipe(self, model: str, folder: Path) -> Mapping[str, Any]:
        """The recipe, for files in a folder."""
        return {
            "model": {"path": model, **self.model},
            "data": {
                "train": [{"path": str(folder / "rows.jsonl")}],
                "template": "chatml",
                "max_length": 256,
                "pack": self.pack,
            },
            "method": self.method,
            "optim": self.optim,
            "train": {"steps": 5, "batch_size": 4, "precision": "fp32", **self.train},
            "save": {"to": str(folder / "run")},
        }


def _lines(path: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:count]]


def _pairs(count: int) -> list[dict[str, Any]]:
    return _lines(HERE / "pairs.jsonl", count)


def _answers(count: int) -> list[dict[str, Any]]:
    """The two answers of each pair, with their label."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in _pairs(count)
        for side in ("chosen", "rejected")
    ]


ROWS = {"conversations": lambda count: _lines(CONVERSATIONS, count), "pairs": _pairs, "answers": _answers}

CASES = {
    "sft lora": Case(
        "conversations",
        "SFTTrainer",
        ("mask",),
        method={"name": "sft"},
        model={"adapter": LORA},
        optim={"learning_rate": 2e-4},
        train={"micro_batch_size": 2},
    ),
    "sft lora packed": Case(
        "conversations",
        "SFTTrainer",
        ("mask",),
        method={"name": "sft"},
        model={"adapter": LORA},
        optim={"learning_rate": 2e-4, "schedule": "constant"},
        pack=True,
    ),
    "sft full": Case(
        "conversations",
        "SFTTrainer",
        ("mask",),
        method={"name": "sft"},
        optim={"learning_rate": 1e-5, "schedule": "linear", "weight_decay": 0.1},
    ),
    "sft qlora": Case(
        "conversations",
        "SFTTrainer",
        ("mask", "unquantized"),
        method={"name": "sft"},
        model={"adapter": LORA, "quantize": {"type": "nf4"}},
        optim={"learning_rate": 2e-4},
    ),
    "dpo lora": Case(
        "pairs",
        "DPOTrainer",
        ("beta",),
        method={"name": "dpo", "beta": 0.1},
        model={"adapter": LORA},
        optim=PREFERENCE,
        train={"micro_batch_size": 2},
    ),
    "dpo full": Case(
        "pairs",
        "DPOTrainer",
        ("beta",),
        method={"name": "dpo", "loss": "robust", "beta": 0.2, "label_smoothing": 0.1},
        optim={"learning_rate": 1e-6, "schedule": "linear"},
    ),
    "kto lora": Case(
        "answers",
        "KTOTrainer",
        ("beta", "kl_batch"),
        method={"name": "kto", "beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        model={"adapter": LORA},
        optim={"learning_rate": 2e-4, "schedule": "linear"},
        train={"batch_size": 8},
    ),
    "simpo lora": Case(
        "pairs",
        "CPOTrainer",
        ("beta",),
        method={"name": "dpo", "loss": "simpo", "beta": 2.0, "gamma": 1.0},
        model={"adapter": LORA},
        optim=PREFERENCE,
    ),
}
