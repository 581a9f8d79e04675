"""Compare the forecasts of memory and time with figures that other projects have published. Needs no GPU.

python benchmarks/published.py

torchtune: README of its repository (batch 2, packed to 2,048 or 4,096 tokens). Unsloth: "Context length benchmarks" of its
documentation (Llama 3.1 8B and 3.3 70B, QLoRA of rank 32, one row).
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tailor.plan import DataFacts, Hardware, ModelFacts, Plan, build
from tailor.plan.devices import device
from tailor.plan.duration import duration
from tailor.spec.recipe import Recipe

GIB = 2**30
_LLAMA: dict[str, Any] = {"vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8}
LLAMA_3B = _LLAMA | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
}
LLAMA_8B = _LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
LLAMA_70B = _LLAMA | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "tie_word_embeddings": False,
}
LORA, QLORA = {"adapter": {"rank": 8}}, {"adapter": {"rank": 8}, "quantize": {}}
AGAIN = {"activation_checkpointing": True}
OFFLOAD = AGAIN | {"activation_offloading": True}


@dataclass(frozen=True)
class Figure:
    """A published figure, and the settings that come closest to it."""

    what: str
    device: str
    model: dict[str, Any]
    config: dict[str, Any]
    train: dict[str, Any]
    length: int
    gib: float | None
    """Peak memory per GPU; None where weights or optimizer are stored in another way than here."""
    tokens_per_second: float | None
    workers: int = 1


TORCHTUNE = (
    Figure("8B, LoRA", "4090", LORA, LLAMA_8B, AGAIN, 2048, 16.2, 3083),
    Figure("8B, QLoRA", "4090", QLORA, LLAMA_8B, AGAIN, 2048, 7.4, 2413),
    Figure("8B, all weights", "4090", {}, LLAMA_8B, AGAIN, 2048, None, 1650),
    Figure("70B, LoRA", "a100-80", LORA, LLAMA_70B, AGAIN, 2048, 27.6, 3497, workers=8),
    Figure("3B, all weights, no checkpointing", "a100-80", {}, LLAMA_3B, {}, 4096, None, 7075),
    Figure("3B, all weights", "a100-80", {}, LLAMA_3B, AGAIN, 4096, None, 7210),
    Figure("3B, LoRA, offloading", "a100-80", {"adapter": {"rank": 64}}, LLAMA_3B, OFFLOAD, 4096, 8.5, 8210),
    Figure(
        "3B, QLoRA, offloading",
        "a100-80",
        {"adapter": {"rank": 64}, "quantize": {}},
        LLAMA_3B,
        OFFLOAD,
        4096,
        4.6,
        8035,
    ),
)
UNSLOTH = {
    "8B": (LLAMA_8B, {8: 2972, 12: 21848, 16: 40724, 24: 78475, 40: 153977, 48: 191728, 80: 342733}),
    "70B": (LLAMA_70B, {48: 12106, 80: 89389}),
}
"""name -> (config, GiB of the GPU -> longest row)."""


def made(config: dict[str, Any], hardware: Hardware, length: int, rows: int, **sections: Any) -> Plan:
    """The plan for micro-batches of `rows` rows of `length` tokens."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": "org/model", **sections["model"]},
            "data": {"train": [{"path": "x"}], "max_length": length},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-4},
            "train": {
                "micro_batch_size": rows,
                "batch_size": rows * sections.get("workers", 1),
                **sections["train"],
            },
            "scale": {"workers": sections.get("workers", 1)},
            "save": {"to": "runs/x"},
        }
    )
    return build(recipe, facts(length, rows), config, hardware, run_url="runs/x")


def facts(length: int, rows: int) -> DataFacts:
    """Documents of 512 tokens, packed; 1,000 steps."""
    tokens = 1000 * rows * length
    return DataFacts(
        "tokens", "f", "t", tokens // 512, 0, tokens, tokens, min(512, length), length, rows, rows, 1000, 1000
    )


def torchtune(figure: Figure) -> tuple[float, float]:
    """(GiB, tokens per second) as forecast."""
    chosen = device(figure.device)
    plan = made(
        figure.config,
        chosen.hardware,
        figure.length,
        2,
        model=figure.model,
        train=figure.train,
        workers=figure.workers,
    )
    rows = 2 * figure.workers
    data = dataclasses.replace(facts(figure.length, rows), rows_per_batch=rows)
    found = duration(plan, ModelFacts.from_config(figure.config), data, chosen)
    return plan.memory.peak / GIB, found.tokens_per_second


def unsloth(config: dict[str, Any], gib: int) -> int:
    """The longest row whose forecast is within the whole memory, with activations offloaded, in tokens."""
    hardware = Hardware("cuda", gib * GIB, bf16=True)
    model = {"adapter": {"rank": 32}, "quantize": {}}
    low, high = 0, 1 << 21
    while high - low > 64:
        middle = (low + high) // 2
        peak = made(config, hardware, middle, 1, model=model, train=OFFLOAD).memory.peak
        low, high = (middle, high) if peak <= gib * GIB else (low, middle)
    return low


def _error(forecast: float, published: float | None) -> str:
    return "" if published is None else f"{published:>10,.1f} {forecast / published - 1:>+7.0%}"


def main() -> None:
    print(f"{'torchtune':<36}{'GiB':>8} published   error   tokens/s published   error")
    for figure in TORCHTUNE:
        gib, speed = torchtune(figure)
        memory = f"{gib:>8.1f}{_error(gib, figure.gib):>18}"
        print(f"{figure.what:<36}{memory}{speed:>11,.0f}{_error(speed, figure.tokens_per_second):>18}")
    for name, (config, rows) in UNSLOTH.items():
        for size, published in rows.items():
            found = unsloth(config, size)
            print(
                f"Unsloth, {name} on {size} GiB: {found:,} tokens, published {published:,}: {found / published - 1:+.0%}"
            )


if __name__ == "__main__":
    main()
