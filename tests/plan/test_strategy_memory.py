"""The memory forecast per strategy, compared with closed forms; `benchmarks/strategies.py` measures the same model."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tailor.plan import Hardware, Plan, build
from tailor.plan.memory import Memory
from tests.plan.test_build import DATA, LLAMA_8B, recipe

MODEL = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}
LAYER = 4 * 768 * 768 + 3 * 768 * 2048
TABLE = 8192 * 768
TRAINED = 8 * LAYER + 2 * TABLE
BUCKET = 2**23
KEPT = 256 * (8 * ((24 + 8 + 8 + 4) * 768 + 16 * 2048) + 8 * 64)
"""Per layer: six hidden states, queries and keys with their values and output, the output's copy, four inner states."""
BACKWARD = KEPT + 256 * 8 * 2048
"""Three inner gradients, when the product is gone."""
HIDDEN = 16 * 768 * 256
"""At the loss: the hidden states in the final norm, normalized, behind it, and their gradient."""
"""Activation bytes of all layers for one row of 256 tokens, in float32."""
HOST = Hardware("cpu", 64 * 2**30, bf16=True)
GPU = Hardware("cuda", 64 * 2**30, bf16=True)
STAGES: dict[str, Any] = {f"zero-{stage}": {"name": "deepspeed", "stage": stage} for stage in (1, 2, 3)}
ALL: dict[str, Any] = {"ddp": "ddp", "fsdp": "fsdp", **STAGES}
LORA = {"adapter": {"rank": 16}, "quantize": None}


def made(
    strategy: Any,
    workers: int = 2,
    hardware: Hardware = HOST,
    precision: str = "fp32",
    model: dict[str, Any] | None = None,
    config: dict[str, Any] = MODEL,
) -> Plan:
    return build(
        recipe(
            model=model or {"quantize": None, "adapter": None},
            train={"micro_batch_size": 1, "precision": precision, "batch_size": 4},
            scale={
                "workers": workers,
                "strategy": ALL.get(strategy) if isinstance(strategy, str) else strategy,
            },
        ),
        dataclasses.replace(DATA, longest=256, longest_row=256),
        config,
        hardware,
        run_url="r",
    )


def memory(*args: Any, **options: Any) -> Memory:
    return made(*args, **options).memory


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_resident_memory_between_steps(workers: int) -> None:
    whole, part = 4 * TRAINED, 4 * TRAINED / workers
    kept = {  # weights, gradients, optimizer state (with DeepSpeed's own float32 weights)
        "ddp": (whole, whole, 2 * whole),
        "fsdp": (part, part, 2 * part),
        "zero-1": (whole, whole, 3 * part),
        "zero-2": (whole, part, 3 * part),
        "zero-3": (part, part + 4 * BUCKET, 3 * part),
    }
    for name, expected in kept.items():
        found = memory(name, workers)
        assert (found.weights, found.gradients, found.optimizer) == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("workers", [2, 4])
def test_mixed_precision_halves_the_weights_that_are_computed_with(workers: int) -> None:
    part = TRAINED / workers
    expected = {"ddp": 4 * TRAINED, "zero-1": 4 * TRAINED, "zero-2": 2 * TRAINED, "zero-3": 2 * part}
    for name, weights in expected.items():
        assert memory(name, workers, precision="bf16").weights == pytest.approx(weights, rel=1e-6), name
    assert memory("fsdp", workers, precision="bf16").weights == pytest.approx(4 * part, rel=1e-6), (
        "the control"
    )


def test_the_peak_of_a_step_is_the_largest_phase() -> None:
    """Two workers on CPUs in float32: the loss under ddp and stage 1, the backward pass where something is gathered."""
    loss = KEPT + 12 * 8192 * 256 + HIDDEN
    layers = 4 * LAYER  # computed, on its way, and gradients twice: as they come, and to be cut
    part = TRAINED / 2
    expected = {
        "ddp": 16 * TRAINED + loss + 4 * TABLE,
        "fsdp": 16 * part + BACKWARD + 4 * (2 * TABLE + layers + TABLE),
        "zero-1": 8 * TRAINED + 12 * part + loss + 4 * TABLE + 4 * BUCKET,
        "zero-2": 4 * TRAINED + 16 * part + BACKWARD + 4 * (2 * BUCKET + part),
        "zero-3": 20 * part + 4 * BUCKET + BACKWARD + 4 * (2 * TABLE + 3 * LAYER + 2 * BUCKET),
    }
    for name, bytes_ in expected.items():
        assert memory(name).peak == pytest.approx(bytes_, rel=5e-3), name


def test_control_gloo_needs_copies_and_nccl_does_not() -> None:
    """There the loss is the larger moment: logits, hidden states, and the head's gradient, but no copy of the bucket."""
    host, gpu = (memory("zero-3", hardware=hardware).peak for hardware in (HOST, GPU))
    loss = 12 * 8192 * 256 + HIDDEN + 4 * TABLE - (BACKWARD - KEPT)
    assert host - gpu == pytest.approx(8 * BUCKET - loss, abs=8)
    assert memory("ddp", hardware=GPU).peak == memory("ddp").peak


def test_adapters_need_small_buffers() -> None:
    """No gradient of a head; but layers are gathered as ever where they are shared out."""
    full, lora = ({name: memory(name, model=model).exchange for name in ALL} for model in (None, LORA))
    assert lora["ddp"] == 0 < full["ddp"]
    assert lora["zero-1"] < full["zero-1"] / 3
    fsdp = memory("fsdp", model=LORA, hardware=GPU)
    assert fsdp.logits + fsdp.exchange == pytest.approx(4 * (2 * TABLE + 2 * LAYER), rel=0.02)
    head = {**LORA, "adapter": {"rank": 16, "modules_to_save": ["lm_head"]}}
    assert memory("ddp", model=head).exchange == pytest.approx(4 * TABLE, rel=0.2), "the control"


def test_more_workers_never_need_more_memory_each() -> None:
    for name in ALL:
        for hardware in (HOST, GPU):
            peaks = [memory(name, workers, hardware).peak for workers in range(1, 65)]
            rising = [b - a for a, b in itertools.pairwise(peaks) if b > a]
            assert not rising, f"{name} on {hardware.device}"
    many, gpu = (memory("fsdp", 64, hardware, config=LLAMA_8B).peak for hardware in (HOST, GPU))
    assert many == pytest.approx(4 * 8.03e9 * (1 + 1 / 64), rel=1e-3), "rank 0 loads the whole model"
    assert gpu < many / 2, "the control: it does so in host memory"


def test_autocast_copies_and_the_gradient_of_the_head_are_counted() -> None:
    """The gradient in float32 and a tile's product; a copy of the head and of all layers, 12 bytes for each logit.

    Weights that are held in bf16 need no copy.
    """
    table, logits = 4096 * 128256, 12 * 128256 * 256
    layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    for tied in (False, True):
        config = {**LLAMA_8B, "tie_word_embeddings": tied}
        found = memory("ddp", 8, GPU, "bf16", config=config)
        assert found.logits + found.exchange == pytest.approx((6 + 2) * table + 2 * layers + logits, rel=0.01)
    adapter = memory("ddp", 8, GPU, "bf16", model=LORA, config=LLAMA_8B)
    assert adapter.exchange == 2 * made("ddp", 8, GPU, "bf16", LORA, LLAMA_8B).trained_parameters
    assert memory("ddp", 8, GPU, "fp32", model=LORA, config=LLAMA_8B).exchange == 0, "the control"
    low, own = (
        memory("zero-2", 8, GPU, "bf16", config=LLAMA_8B),
        memory("zero-1", 8, GPU, "bf16", config=LLAMA_8B),
    )
    assert low.exchange < own.exchange - layers


def test_bucket_sizes_follow_the_model_unless_the_users_json_sets_them(tmp_path: Path) -> None:
    def sizes(stage: int, **options: Any) -> dict[str, int]:
        config = made(f"zero-{stage}", **options).deepspeed
        assert config is not None
        return {key: value for key, value in config["zero_optimization"].items() if key != "stage"}

    assert sizes(2) == {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    assert sizes(2, config=LLAMA_8B)["reduce_bucket_size"] == 4096**2
    adapter = 8 * 16 * (4 * (768 + 768) + 3 * (768 + 2048))
    assert sizes(1, model=LORA)["reduce_bucket_size"] == adapter < BUCKET
    shared = sizes(3)
    assert shared["stage3_max_reuse_distance"] == shared["stage3_prefetch_bucket_size"] == LAYER
    assert shared["stage3_max_live_parameters"] == 2 * LAYER + 2 * TABLE

    own = {
        "reduce_bucket_size": 500_000_000,
        "stage3_max_reuse_distance": 1e9,
        "stage3_max_live_parameters": 1e9,
    }
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": own}))
    strategy = {**STAGES["zero-3"], "config": str(tmp_path / "zero.json")}
    config = made(strategy).deepspeed
    assert config is not None
    assert config["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    kept = memory(strategy).gradients - memory("zero-3").gradients
    assert kept == 4 * (500_000_000 - BUCKET)
    assert memory(strategy).exchange > memory("zero-3").exchange + 4 * 5 * LAYER, "all layers stay whole"
