"""Which strategy a plan takes, what each worker then holds, and what DeepSpeed is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.plan import Hardware
from tests.plan.test_build import GPU, plan

FULL: dict[str, Any] = {"model": {"quantize": None, "adapter": None}, "train": {"micro_batch_size": 1}}
LARGE = Hardware("cuda", 200 * 2**30, bf16=True)
OLD = Hardware("cuda", 16 * 2**30, bf16=False)


def full(hardware: Hardware = GPU, strategy: Any = "auto", workers: int = 8, **sections: Any) -> Any:
    scale = {"workers": workers, "strategy": strategy}
    return plan(hardware, **{**FULL, **sections}, scale=scale)


def test_auto_takes_ddp_where_it_fits_and_fsdp_where_it_does_not() -> None:
    fits, shared = full(LARGE), full()
    assert (fits.strategy.name, shared.strategy.name) == ("ddp", "fsdp")
    assert fits.strategy_reason.startswith("all weights fit each worker: ")
    assert shared.strategy_reason.startswith("ddp would need 148.6 of each")
    assert shared.memory.peak < 0.5 * GPU.memory_bytes < fits.memory.peak
    assert full(workers=1).strategy.name == "ddp"


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optim": {"learning_rate": 1e-4, "optimizer": "lion"}}, "optim.optimizer: lion"),
        ({"train": {"micro_batch_size": 1, "compile": True}}, "train.compile"),
        ({"evaluate": {"generation": {}}}, "evaluate.generation"),
        ({"evaluate": {"retrieval": {"data": {"path": "beir"}}}}, "evaluate.retrieval"),
    ],
)
def test_auto_keeps_ddp_where_a_key_rules_sharing_out(sections: dict[str, Any], named: str) -> None:
    made = full(**sections)
    assert made.strategy.name == "ddp"
    assert made.strategy_reason.endswith(f"and {named} rules fsdp out")


def test_what_a_worker_holds_falls_with_the_stage_and_the_workers() -> None:
    def held(strategy: Any, workers: int = 8) -> int:
        memory = full(LARGE, strategy, workers).memory
        return int(memory.weights + memory.gradients + memory.optimizer)

    stages = [held({"name": "deepspeed", "stage": stage}) for stage in (1, 2, 3)]
    assert held("ddp") > stages[0] > stages[1] > stages[2]
    assert held("fsdp", 16) < held("fsdp", 8) < held("ddp") / 4
    assert held({"name": "fsdp", "offload": True}) < held("fsdp")
    offloaded = {"name": "deepspeed", "stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
    assert held(offloaded) < stages[2] / 2


def test_deepspeed_is_told_what_the_recipe_says(tmp_path: Path) -> None:
    own = {
        "train_batch_size": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "zero_optimization": {
            "stage": 2,
            "reduce_bucket_size": "auto",
            "overlap_comm": True,
            "sub_group_size": "auto",
        },
        "aio": {"block_size": 1048576},
    }
    (tmp_path / "zero.json").write_text(json.dumps(own))
    strategy = {
        "name": "deepspeed",
        "stage": 2,
        "offload_optimizer": "cpu",
        "config": str(tmp_path / "zero.json"),
    }
    told = full(LARGE, strategy, optim={"learning_rate": 1e-4, "max_grad_norm": 0.3}).deepspeed
    assert told["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 4096 * 4096,
        "allgather_bucket_size": 4096 * 4096,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu"},
    }
    assert (told["gradient_clipping"], told["gradient_accumulation_steps"]) == (0.3, 1)
    assert told["bf16"] == {"enabled": True}
    assert told["aio"] == own["aio"]
    assert not told.keys() & {"optimizer", "scheduler", "train_batch_size", "fp16"}
    assert full(LARGE).deepspeed is None


def test_fp16_is_refused_where_the_hardware_chooses_it() -> None:
    with pytest.raises(
        ModelError, match=r"train.precision: auto is fp16 on these GPUs, and scale.strategy fsdp"
    ):
        full(OLD, "fsdp")
    assert full(OLD).strategy.name == "ddp", "the control: auto takes what computes there"
