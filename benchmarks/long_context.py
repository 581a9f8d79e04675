"""Peak memory of one training step against the length of its sequence, for each way to need less of it.

    python benchmarks/long_context.py [--lengths 1024 2048 3072]
    python benchmarks/long_context.py --anchor

A Llama with LoRA (rank 16), float32, one document as long as the step. `plain` keeps all activations and all logits;
`tiled loss` never has all logits; `checkpointed` also keeps each layer's input alone, `checkpointed, every 2nd` that of
every second layer; `tiled` also computes the feed-forward blocks in tiles; `offloaded` also holds the layers' inputs in
host memory; `sequence parallel 2` is `tiled` on two workers that hold the sequence together, `all` is everything, both per
worker. `qlora` is on a base in 4 bits, `bf16` computes in bf16, `full` trains all weights. Gradients exist before the step,
as in every step but the first.

One JSON line per measurement: bytes at the peak beside the weights (tensors that are alive, counted operation by
operation; on a GPU what its allocator held), bytes in host memory, seconds. One more per way: its slope in bytes per
token between the two longest, and what the plan's formula says.

`--anchor`: resident memory of the whole process and seconds of one step with a vocabulary of 131 072 and 8 192 tokens,
all logits against tiles of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

HIDDEN, MIDDLE, LAYERS, HEADS, KEYS, VOCABULARY = 256, 1024, 4, 8, 4, 8192
TILE_TOKENS = 64
"""So that the lengths are many tiles, as they are of a large model."""
MLP_TILE_BYTES, LOSS_TILE_BYTES = 4 * MIDDLE * TILE_TOKENS, 4 * VOCABULARY * TILE_TOKENS


@dataclass(frozen=True)
class Way:
    tiled_loss: bool = True
    checkpointing: int = 1
    tiled_mlp: bool = False
    offloading: bool = False
    parts: int = 1
    kind: str = "lora"
    bf16: bool = False

    @property
    def model(self) -> dict[str, Any]:
        """Keys of the recipe's model section."""
        adapter: dict[str, Any] = {} if self.kind == "full" else {"adapter": {"rank": 16}}
        return {**adapter, **({"quantize": {"type": "nf4"}} if self.kind == "qlora" else {})}

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float32"


WAYS = {
    "plain": Way(tiled_loss=False, checkpointing=0),
    "tiled loss": Way(checkpointing=0),
    "checkpointed": Way(),
    "checkpointed, every 2nd": Way(checkpointing=2),
    "tiled": Way(tiled_mlp=True),
    "offloaded": Way(tiled_mlp=True, offloading=True),
    "qlora, checkpointed": Way(kind="qlora"),
    "qlora, bf16, tiled": Way(kind="qlora", bf16=True, tiled_mlp=True),
    "qlora, bf16, offloaded": Way(kind="qlora", bf16=True, tiled_mlp=True, offloading=True),
    "bf16, checkpointed": Way(bf16=True),
    "full, checkpointed": Way(kind="full"),
    "full, bf16, checkpointed": Way(kind="full", bf16=True),
    "sequence parallel 2": Way(tiled_mlp=True, parts=2),
    "qlora, sequence parallel 2": Way(tiled_mlp=True, parts=2, kind="qlora"),
    "all": Way(tiled_mlp=True, offloading=True, parts=2),
}


def make_model(folder: Path, **overrides: Any) -> Path:
    from tests.helpers.models import tiny_llama

    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2**20,
        "initializer_range": 0.02,
    }
    return tiny_llama(folder, **{**shape, **overrides})


def load(folder: Path, way: Way, device: Any) -> Any:
    from tailor.models import activations, load
    from tailor.spec.model import Model

    tile_bytes, activations.TILE_BYTES = activations.TILE_BYTES, MLP_TILE_BYTES
    model = load.load_for_training(
        Model.model_validate({"path": str(folder), **way.model}),
        device=device,
        precision="bf16" if way.bf16 else "fp32",
        frozen_dtype=way.dtype,
        pack=True,
        activation_checkpointing=way.checkpointing,
        activation_offloading=way.offloading,
        tiled_mlp=way.tiled_mlp,
        seed=0,
    ).train()
    activations.TILE_BYTES = tile_bytes
    return model


def stream(length: int, vocabulary: int) -> Any:
    import numpy as np

    from tailor.models.collator import Document, collate

    ids = np.random.default_rng(0).integers(5, vocabulary, size=length + 1)
    return collate([[Document(ids[:-1], ids[1:])]], "stream", parts=2)


def step(model: Any, batch: Any, tile_bytes: int | None, bf16: bool = False) -> None:
    """tile_bytes: of the logits; None for all of them at once."""
    import torch
    from torch.nn import functional

    from tailor.models.loss import summed_cross_entropy

    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=bf16):
        hidden, head, targets = model.at_predictions(batch)
        if tile_bytes is not None:
            loss = summed_cross_entropy(hidden, head, targets, tile_bytes=tile_bytes)
        else:
            loss = functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
    loss.backward()


def measure(host: Any, folder: Path, names: list[str], lengths: list[int]) -> list[dict[str, Any]]:
    """One line for each way and length. Called on every worker of a group."""
    import torch

    from tailor.models.sequence import join
    from tests.helpers.live_bytes import measured

    lines = []
    group = join(host.world) if host.world > 1 else None
    for name in names:
        way = WAYS[name]
        tile_bytes = LOSS_TILE_BYTES if way.tiled_loss else None
        model = load(folder, way, host.device)
        for length in lengths:
            batch = stream(length, VOCABULARY).to(host.device)
            if group is not None:
                batch = batch.cut(group)
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
            began = time.perf_counter()
            line = {"way": name, "length": length, "device": host.device.type}
            if host.device.type == "cuda":
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                step(model, batch, tile_bytes, way.bf16)
                line["peak_bytes"] = torch.cuda.max_memory_allocated() - before
                line["host_bytes"] = (
                    (2 if way.bf16 else 4) * HIDDEN * LAYERS * length // way.parts if way.offloading else 0
                )
            else:
                counted = measured(functools.partial(step, model, batch, tile_bytes, way.bf16))
                line["peak_bytes"], line["host_bytes"] = counted.peak, counted.host
            lines.append({**line, "seconds": round(time.perf_counter() - began, 2)})
            if host.rank == 0:
                print(json.dumps(lines[-1]), flush=True)
    return lines


def forecast(folder: Path, way: Way, length: int) -> int:
    """Bytes beside the weights, by the plan."""
    import torch

    from tailor.plan import ModelFacts, activation_memory, memory
    from tailor.spec.model import Model

    activation_memory.MLP_TILE_BYTES, memory.LOSS_TILE_BYTES = MLP_TILE_BYTES, LOSS_TILE_BYTES
    made = memory.forecast(
        ModelFacts.from_config(json.loads((folder / "config.json").read_text())),
        Model.model_validate({"path": str(folder), **way.model}),
        optimizer="adamw",
        frozen_dtype=way.dtype,
        mixed_precision=way.bf16,
        on_host=not torch.cuda.is_available(),
        activation_checkpointing=way.checkpointing,
        activation_offloading=way.offloading,
        tiled_mlp=way.tiled_mlp,
        sequence_parallel=way.parts,
        rows=1,
        length=length,
    )
    logits = 0 if way.tiled_loss else 12 * VOCABULARY * length - 3 * LOSS_TILE_BYTES
    return made.activations + made.logits + logits


def curves(lengths: list[int]) -> None:
    import torch

    from tests.helpers.hosts import PlainHost, run_distributed

    with tempfile.TemporaryDirectory() as place:
        folder = make_model(Path(place) / "model")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        lines = measure(
            PlainHost(device=device), folder, [n for n, w in WAYS.items() if w.parts == 1], lengths
        )
        together = [name for name, way in WAYS.items() if way.parts == 2]
        lines += run_distributed(measure, folder, together, lengths, world=2)[0]
        for name, way in WAYS.items():
            own = {line["length"]: line["peak_bytes"] for line in lines if line["way"] == name}
            first, last = sorted(own)[-2:]
            slopes = [
                (values[last] - values[first]) / (last - first)
                for values in (own, {length: forecast(folder, way, length) for length in own})
            ]
            print(
                json.dumps(
                    {
                        "way": name,
                        "bytes_per_token": round(slopes[0]),
                        "formula_bytes_per_token": round(slopes[1]),
                    }
                )
            )


ANCHOR = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 131072}


def anchor_step(folder: Path, tiled: bool) -> None:
    """In a process of its own: one full training step in float32."""
    import torch

    from tailor.models.load import load_for_training
    from tailor.models.loss import TILE_BYTES
    from tailor.spec.model import Model

    model = load_for_training(
        Model(path=str(folder)),
        device=torch.device("cpu"),
        precision="fp32",
        frozen_dtype="float32",
        pack=True,
        activation_checkpointing=False,
        seed=0,
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = stream(8192, ANCHOR["vocab_size"])
    began, used = time.perf_counter(), time.process_time()
    step(model, batch, TILE_BYTES if tiled else None)
    optimizer.step()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    line = {"way": "tiled loss" if tiled else "plain", "tokens": 8192, "vocabulary": ANCHOR["vocab_size"]}
    figures = {"resident_gb": round(int(peak[1]) * 1024 / 1e9, 2), "seconds": round(seconds, 2)}
    print(json.dumps({**line, **figures, "cpu_seconds": round(used, 2)}))


def anchors() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = make_model(Path(place) / "model", **ANCHOR, num_attention_heads=4, num_key_value_heads=2)
        for way in ("plain", "tiled"):
            call = [sys.executable, __file__, "--anchor-step", way, str(folder)]
            told = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(told.strip().splitlines()[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 3072])
    parser.add_argument("--anchor", action="store_true")
    parser.add_argument("--anchor-step", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.anchor_step:
        anchor_step(Path(arguments.anchor_step[1]), arguments.anchor_step[0] == "tiled")
    elif arguments.anchor:
        anchors()
    else:
        curves(arguments.lengths)


if __name__ == "__main__":
    main()
