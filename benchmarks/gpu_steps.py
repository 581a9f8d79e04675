"""Steps of training for `gpu.py`: each function is a part, which yields lines. They train as `tailor run` does, with its plan."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MeteredHost, recipe_of, tokenizer, write_store
from published import LLAMA_8B, UNSLOTH, unsloth

from tailor.data.token_store import TokenStore
from tailor.layout import MODEL_CONFIG
from tailor.models.architecture import from_config
from tailor.onray import cluster
from tailor.onray.planning import examine, planner
from tailor.plan import DataFacts, Hardware, ModelFacts, Plan
from tailor.plan.build import USABLE_MEMORY
from tailor.plan.devices import peak_flops
from tailor.plan.duration import flops_per_token
from tailor.store import Store
from tailor.train import loop, throughput
from tests.helpers.embedding_stores import make_grit_store

WARM, STEPS = 2, 3
"""Steps that are not measured, and the fewest that are."""
GIB = 2**30
LORA: dict[str, Any] = {"adapter": {"rank": 16}}
QLORA: dict[str, Any] = {**LORA, "quantize": {}}
LONG: dict[str, Any] = {"adapter": {"rank": 32}, "quantize": {}}
"""As in Unsloth's table."""
CHECKPOINTED = {"activation_checkpointing": True}
OFFLOADED = {**CHECKPOINTED, "activation_offloading": True}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "all kept": {},
    "checkpointed": CHECKPOINTED,
    "offloaded": OFFLOADED,
    "offloaded, tiled MLP": {**OFFLOADED, "tiled_mlp": True},
}


@dataclass(frozen=True)
class Size:
    """Shapes of the model and of its data."""

    config: dict[str, Any]
    length: int
    """Tokens of a row."""
    document: int
    """Tokens of a document. Several share a row."""
    rows: int
    """Of a step."""
    few: int
    """Layers of the parts that compare settings."""
    seconds: float
    """Minimum duration of the measured steps."""
    queries: int
    """Of a step with embeddings, each with two passages."""
    context: int
    """GiB of the GPU that `context` stands for."""


SIZES = {
    "cuda": Size(LLAMA_8B, 4096, 1024, 8, 8, 8.0, 256, 24),
    "cpu": Size(
        {
            **LLAMA_8B,
            "vocab_size": 8192,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        64,
        32,
        2,
        1,
        0.0,
        8,
        0,
    ),
}


def model(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    from transformers import LlamaConfig

    config = LlamaConfig(**SIZES[device.type].config, max_position_embeddings=1 << 20)
    torch.manual_seed(0)
    with device:
        made = from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    yield {"device": name_of(device), "weights": made.num_parameters()}


def lora(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    for train in ({}, CHECKPOINTED):
        yield Run(folder, device, model=LORA, train=train).measure() | train


def qlora(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    yield Run(folder, device, model=QLORA, train=CHECKPOINTED).measure() | CHECKPOINTED


def full(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    depth = SIZES[device.type].config["num_hidden_layers"]
    for layers in range(depth, 0, -2):
        run = Run(folder, device, layers=layers, train=CHECKPOINTED)
        if run.fits:
            yield {"of_layers": depth, **run.measure(), **CHECKPOINTED}
            return
    yield {"skipped": "no depth fits"}


def activations(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    size = SIZES[device.type]
    for name, train in ACTIVATIONS.items():
        fixed = {**train, "micro_batch_size": 2, "batch_size": 2}
        yield {"way": name, **Run(folder, device, layers=size.few, model=LORA, train=fixed).measure()}


def context(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """One step with the row that the plan forecasts for 24 GiB, with no more memory than that; then with less of it."""
    size = SIZES[device.type]
    longest = size.length
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size.context * GIB / total))
        longest = unsloth(UNSLOTH["8B"][0], size.context)
    for share in (1.0, 0.9, 0.8):
        length = int(share * longest) // 64 * 64
        one_row = {**OFFLOADED, "batch_size": 1, "micro_batch_size": 1}
        run = Run(folder, device, model=LONG, train=one_row, length=length, document=length)
        try:
            yield {"gib": size.context, **run.measure(warm=0, steps=1)}
            return
        except torch.OutOfMemoryError:
            yield {"gib": size.context, "length": length, "out_of_memory": True}
        release()


def gradcache(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    size = SIZES[device.type]
    tokens = folder / "grit"
    make_grit_store(tokens, queries=4 * size.queries, answers=1, others=1, lengths=(20, 120))
    for engine in ("gradcache", "chunk_checkpoint"):
        method = {
            "name": "gritlm",
            "mode": "embedding",
            "engine": engine,
            "embedding_batch_size": size.queries,
        }
        run = Run(
            folder,
            device,
            layers=size.few,
            tokens=tokens,
            model=LORA,
            method=method,
            train={"batch_size": None},
        )
        yield {"engine": engine, "queries": size.queries, **run.measure()}


class Run:
    """A run of the model's first `layers` layers on packed documents: its plan, and the figures of its steps."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        layers: int | None = None,
        length: int | None = None,
        document: int | None = None,
        tokens: Path | None = None,
        **sections: Any,
    ) -> None:
        size = SIZES[device.type]
        length, document = length or size.length, document or size.document
        self.device = device
        work = with_layers(folder, layers or size.config["num_hidden_layers"])
        sections["data"] = {"max_length": length}
        sections["scale"] = {"gpu": device.type == "cuda"}
        train = {"batch_size": size.rows, "steps": 100, **sections["train"]}
        if device.type == "cpu":  # whose plan rejects it
            train.pop("activation_offloading", None)
        sections["train"] = train
        recipe = recipe_of(work, **sections)
        outline = examine(recipe)
        self.hardware: Hardware = cluster.hardware(recipe.scale, None)
        self.data, build = planner(
            recipe,
            TokenStore.open(str(tokens or documents(folder, length, document))),
            Store(str(work / "run")),
            outline=outline,
        )
        assert isinstance(self.data, DataFacts)
        self.plan: Plan = build(recipe, self.data, self.hardware)
        config = json.loads((work / "model" / MODEL_CONFIG).read_text())
        self.facts = ModelFacts.from_config(config, None if hasattr(outline, "reason") else outline)

    @property
    def fits(self) -> bool:
        return self.plan.memory.peak <= USABLE_MEMORY * self.hardware.memory_bytes

    def measure(self, warm: int = WARM, steps: int = STEPS) -> dict[str, Any]:
        """Train until there are enough steps, and return their figures. No checkpoint and no artifact is written."""
        shape = {
            "layers": self.facts.layers,
            "length": max(self.plan.row_length, self.data.longest_text),
            "micro_batch": self.plan.micro_batch_size,
            "forecast_gib": round(self.plan.memory.peak / GIB, 2),
        }
        if self.plan.memory.peak > self.hardware.memory_bytes:
            return {**shape, "skipped": "the forecast exceeds the memory"}
        records: list[dict[str, Any]] = []
        seconds = SIZES[self.device.type].seconds if warm else 0.0

        def on_step(record: dict[str, Any]) -> None:
            records.append(record)
            measured = records[warm:]
            if len(measured) >= steps and sum(one["step_seconds"] for one in measured) >= seconds:
                raise Enough

        with suppress(Enough):
            loop.run(self.plan, MeteredHost(on_step, self.device))
        release()
        measured = records[warm:]
        spent, tokens = (sum(one[key] for one in measured) for key in ("step_seconds", "tokens"))
        peak = max(one["peak_memory_bytes"] for one in measured)
        return {
            **shape,
            "steps": len(measured),
            "tokens_per_second": round(tokens / spent),
            **self._utilization(tokens, spent),
            "peak_gib": round(peak / GIB, 2),
            "forecast_to_peak": round(self.plan.memory.peak / peak, 3),
        }

    def _utilization(self, tokens: int, seconds: float) -> dict[str, float | None]:
        mfu = throughput.model_flops_utilization(
            self.device,
            parameters=self.plan.active_parameters,
            trained_fully=self.plan.model.adapter is None,
            tokens=tokens,
            seconds=seconds,
        )
        if mfu is None:
            return {"mfu": None, "hfu": None}
        work = flops_per_token(self.plan, self.facts, self.data) * tokens / seconds
        peak = peak_flops(name_of(self.device))
        assert peak is not None
        return {"mfu": round(mfu, 3), "hfu": round(work / peak, 3)}


class Enough(Exception):
    """Ends a run before it writes a checkpoint and an artifact."""


def with_layers(folder: Path, layers: int) -> Path:
    """A folder with the model's first layers, which shares the files of the weights."""
    work = folder / f"layers-{layers}"
    if not work.exists():
        (work / "model").mkdir(parents=True)
        for file in (folder / "model").iterdir():
            os.link(file, work / "model" / file.name)
        config = json.loads((folder / "model" / MODEL_CONFIG).read_text()) | {"num_hidden_layers": layers}
        (work / "model" / MODEL_CONFIG).unlink()
        (work / "model" / MODEL_CONFIG).write_text(json.dumps(config))
    return work


def documents(folder: Path, length: int, document: int) -> Path:
    """A token store with documents of `document` tokens for some rows of `length`."""
    tokens = folder / f"tokens-{length}-{document}"
    if not tokens.exists():
        lengths = np.full(32 * length // document, document)
        ids = np.random.default_rng(0).integers(10, 8192, size=lengths.sum())
        spans = np.stack([np.ones_like(lengths), lengths], axis=1).reshape(-1)
        write_store(tokens, ids, lengths, spans, np.arange(len(lengths)) + 1)
    return tokens


def release() -> None:
    """Free what the last run held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
