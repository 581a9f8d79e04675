"""The choice of the strategy, the memory per worker, and the DeepSpeed config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.plan import lines
from tailor.errors import ModelError
from tailor.plan import Hardware
from tests.helpers.extensions import make_distribution
from tests.plan.test_build import GPU, plan

FULL: dict[str, Any] = {"model": {"quantize": None, "adapter": None}, "train": {"micro_batch_size": 1}}
LARGE = Hardware("cuda", 200 * 2**30, bf16=True)
OLD = Hardware("cuda", 16 * 2**30, bf16=False)


def full(hardware: Hardware = GPU, strategy: Any = "auto", workers: int = 8, **sections: Any) -> Any:
    scale = {"workers": workers, "strategy": strategy}
    return plan(hardware, **{**FULL, **sections}, scale=scale)


def test_auto_selects_ddp_if_it_fits_else_fsdp() -> None:
    fits, sharded = full(LARGE), full()
    assert (fits.strategy.name, sharded.strategy.name) == ("ddp", "fsdp")
    assert fits.strategy_reason.startswith("the model fits on each worker: ")
    assert sharded.strategy_reason.startswith("ddp would need 152.7 of 80.0 GiB per worker")
    assert sharded.memory.peak < 0.5 * GPU.memory_bytes < fits.memory.peak
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
def test_auto_keeps_ddp_if_fsdp_does_not_support_a_setting(sections: dict[str, Any], named: str) -> None:
    made = full(**sections)
    assert made.strategy.name == "ddp"
    assert made.strategy_reason.endswith(f", but fsdp does not support {named}")


def test_memory_per_worker_falls_with_the_stage_and_the_workers() -> None:
    def resident(strategy: Any, workers: int = 8) -> int:
        memory = full(LARGE, strategy, workers).memory
        return int(memory.weights + memory.gradients + memory.optimizer)

    stages = [resident({"name": "deepspeed", "stage": stage}) for stage in (1, 2, 3)]
    assert resident("ddp") > stages[0] > stages[1] > stages[2]
    assert resident("fsdp", 16) < resident("fsdp", 8) < resident("ddp") / 4
    assert resident({"name": "fsdp", "offload": True}) < resident("fsdp")
    offloaded = {"name": "deepspeed", "stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
    assert resident(offloaded) < stages[2] / 2


def test_the_deepspeed_config_has_the_recipes_values(tmp_path: Path) -> None:
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
    config = full(LARGE, strategy, optim={"learning_rate": 1e-4, "max_grad_norm": 0.3}).deepspeed
    assert config["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 4096 * 4096,
        "allgather_bucket_size": 4096 * 4096,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu"},
    }
    assert (config["gradient_clipping"], config["gradient_accumulation_steps"]) == (0.3, 1)
    assert config["bf16"] == {"enabled": True}
    assert config["aio"] == own["aio"]
    assert not config.keys() & {"optimizer", "scheduler", "train_batch_size", "fp16"}
    assert full(LARGE).deepspeed is None


def test_fsdp_without_bf16_hardware_is_rejected() -> None:
    with pytest.raises(
        ModelError,
        match=r"train.precision: auto selects fp16 on these GPUs, but scale.strategy fsdp supports only",
    ):
        full(OLD, "fsdp")
    assert full(OLD).strategy.name == "ddp", "the control: auto selects a strategy that supports fp16"


@pytest.mark.parametrize(
    ("optimizer", "advice"),
    [
        ("adamw", "set scale.strategy: fsdp"),
        ("lion", "set model.adapter, or optim.optimizer: adamw_8bit"),
    ],
)
def test_advice_names_fsdp_only_where_the_rules_allow_it(optimizer: str, advice: str) -> None:
    made = full(
        strategy="ddp",
        optim={"learning_rate": 1e-4, "optimizer": optimizer},
        train={"micro_batch_size": 1, "activation_checkpointing": True},
    )
    assert dict(lines(made, GPU))["advice"] == advice


EXTERNAL = """
from typing import Literal

from tailor.spec.strategy import Strategy


class Halves(Strategy):
    \"\"\"Two workers hold half of the weights each.\"\"\"

    implementation = "toy.training:Halves"
    memory = "toy.strategy:half"
    shards_optimizer = True

    name: Literal["halves"]
    level: Literal[1, 2] = 1


def half(strategy, workers, held, sizes):
    from tailor.plan.strategy_memory import unsharded

    whole = unsharded(strategy, workers, held, sizes)
    return type(whole)(**{**vars(whole), "weights": whole.weights / 2})
"""
TRAINING = """
class Halves:
    def __init__(self, plan, host):
        self.strategy = plan.strategy
"""
USE = """
import pickle, sys
from pathlib import Path

from toy.strategy import Halves  # before tailor's own registry
from tailor.errors import RecipeError
from tailor.spec.load import load_recipe
from tailor.plan.strategy import ruled_out
from tests.plan.test_build import plan

made = {name: plan(model={"quantize": None}, scale={"workers": 2, "strategy": name}) for name in ("ddp", "halves")}
assert isinstance(made["halves"].strategy, Halves)
assert made["halves"].memory.weights == made["ddp"].memory.weights // 2
assert "torch" not in sys.modules
from tailor.train.strategy import make_strategy
assert make_strategy(pickle.loads(pickle.dumps(made["halves"])), None).strategy.level == 1
Path("r.yaml").write_text(Path(sys.argv[1]).read_text())
try:
    load_recipe("r.yaml", ["scale.strategy=halves", "optim.optimizer=lion"], check_files=False)
except RecipeError as error:
    print(error)
"""


def test_another_package_brings_a_strategy(tmp_path: Path) -> None:
    modules = {"toy/__init__.py": "", "toy/strategy.py": EXTERNAL, "toy/training.py": TRAINING}
    points = {"tailor.strategies": {"halves": "toy.strategy:Halves"}}
    make_distribution(tmp_path / "toy", "toy", modules, points)
    path = f"{tmp_path / 'toy'}:{Path(__file__).parents[2]}"
    ran = subprocess.run(
        [sys.executable, "-c", USE, str(Path(__file__).parents[2] / "recipes/quickstart.yaml")],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert (
        "optim.optimizer: conflicts with scale.strategy halves, which shards the optimizer state"
        in ran.stdout
    )
