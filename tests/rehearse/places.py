"""A folder with a tiny base, rows of each kind, and recipes of each method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tailor.rehearse.checks import CHECKS, Check
from tailor.rehearse.rehearsal import rehearsal
from tailor.rehearse.rehearse import Result, rehearse
from tests.helpers.collections import beir_folder
from tests.helpers.models import byte_tokenizer

METRIC = """
def same(answer, reference, row):
    return float(answer == reference)


def broken(answer, reference, row):
    return 1 / 0
"""
CLUSTER = "image: registry.example.org/tailor:1.0\nworker: {cpu: 2, memory: 8Gi}\n"
ADAPTER = {"rank": 4, "alpha": 8}
SFT: dict[str, Any] = {
    "model": {"path": "base", "adapter": ADAPTER},
    "data": {
        "train": [{"path": "chats.jsonl"}],
        "evaluation": [{"path": "held.jsonl"}],
        "max_length": 128,
    },
    "method": {"name": "sft"},
    "optim": {"learning_rate": 1e-3, "warmup_ratio": 0.1},
    "train": {"epochs": 3, "batch_size": 64},
    "scale": {"workers": 4, "strategy": "fsdp", "gpu": "auto"},
    "save": {"to": "runs/one"},
    "evaluate": {
        "final": {
            "tasks": [
                {"name": "perplexity"},
                {"name": "exact_match"},
                {"name": "metric", "function": "score.py:same"},
            ],
            "fail_if": {"perplexity": "> 1.1"},
        }
    },
}


def changed(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A recipe with other sections."""
    return {**values, **sections}


_PLAIN = {"train": {"batch_size": 8}, "scale": {}, "evaluate": {}}
METHODS: dict[str, dict[str, Any]] = {
    "full": changed(SFT, **_PLAIN, model={"path": "base"}),
    "qlora": changed(
        SFT,
        **_PLAIN,
        model={"path": "base", "adapter": ADAPTER, "quantize": {"type": "nf4"}},
        optim={"learning_rate": 1e-3, "optimizer": "paged_adamw_8bit"},
    ),
    "pretrain": changed(
        SFT,
        model={"path": "base", "init": "random"},
        data={"train": [{"path": "texts.jsonl"}], "holdout": 0.1, "max_length": 256},
        method={"name": "pretrain"},
        train={"tokens": 1_000_000, "batch_tokens": 65536},
        scale={},
        evaluate={"every": 100},
    ),
    "dpo": changed(
        SFT, **_PLAIN, data={"train": [{"path": "pairs.jsonl"}], "max_length": 128}, method={"name": "dpo"}
    ),
    "kto": changed(
        SFT, **_PLAIN, data={"train": [{"path": "rated.jsonl"}], "max_length": 128}, method={"name": "kto"}
    ),
    "gritlm": changed(
        SFT,
        data={
            "train": [{"path": "queries.jsonl"}, {"path": "chats.jsonl"}],
            "max_length": 128,
            "template": "template.jinja",
        },
        method={"name": "gritlm", "matryoshka": [32]},
        train={"epochs": 1},
        evaluate={"final": {"tasks": [{"name": "retrieval", "data": {"path": "beir"}}]}},
    ),
}


def make(folder: Path) -> Path:
    """Write the files. The base is a Llama of 4 layers with 4 query heads per key head, without weights."""
    base = byte_tokenizer(folder / "base")
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 261,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }
    (base / "config.json").write_text(json.dumps(config))
    template = json.loads((base / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "template.jinja").write_text(template)
    (folder / "score.py").write_text(METRIC)
    (folder / "cluster.yaml").write_text(CLUSTER)
    beir_folder(folder / "beir")
    ask = [f"Which needle for order {at}?" for at in range(24)]
    answer = [f"Needle {at % 7}." for at in range(24)]
    chats = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(ask, answer, strict=True)
    ]
    rows: dict[str, Sequence[Any]] = {
        "chats": chats[:18],
        "held": chats[18:],
        "texts": [{"text": f"{a} {b} " * 5} for a, b in zip(ask, answer, strict=True)],
        "pairs": [{"prompt": a, "chosen": b, "rejected": "None."} for a, b in zip(ask, answer, strict=True)],
        "rated": [
            {"prompt": a, "completion": b, "label": at % 2 == 0}
            for at, (a, b) in enumerate(zip(ask, answer, strict=True))
        ],
        "queries": [
            {"query": ["Find it.", a], "pos": [["", b]], "neg": [["", f"Thread {at}."]]}
            for at, (a, b) in enumerate(zip(ask, answer, strict=True))
        ],
    }
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    for name, recipe in {"lora": SFT, **METHODS}.items():
        write(folder, recipe, f"{name}.yaml")
    return folder


def write(folder: Path, recipe: dict[str, Any], name: str = "changed.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(recipe))
    return str(folder / name)


def results(
    path: str,
    *overrides: str,
    cluster: str | None = None,
    forms: Sequence[str] = ("huggingface",),
    until: str | None = None,
) -> dict[str, Result]:
    """The results by check, of those up to `until`."""
    checks: Sequence[Check] = CHECKS
    if until is not None:
        checks = CHECKS[: 1 + [check.name for check in CHECKS].index(until)]
    with rehearsal(path, list(overrides), cluster, list(forms)) as state:
        return {one.check: one for one in rehearse(state, checks)}
