"""The curve doesn't depend on how a batch is cut or who computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.plan import Plan
from tailor.train import loop
from tailor.train.strategy.ddp import DataParallel
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow

LENGTHS = [int(10 + (37 * i) % 50) for i in range(60)]
ADAPTED = {"adapter": {**LORA, "dropout": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "full, packed": {},
    "full, unpacked": {"data": {"pack": False}},
    "lora, packed": {"model": ADAPTED},
    "lora, unpacked": {"model": ADAPTED, "data": {"pack": False}},
    "stock attention": {"model": {"attention": "sdpa"}},
    "one worker without rows": {"train": {"batch_size": 3}},
    "short to long": {"train": {"order": "short_to_long"}},
    "tokens for a batch": {"train": {"batch_size": None, "batch_tokens": 256}},
    "joined documents": {"method": {"name": "pretrain"}},
    "joined documents, lora": {"method": {"name": "pretrain"}, "model": ADAPTED},
    "adapted experts, packed": {
        "model": {"path": "mixtral", "adapter": {**LORA, "experts": True, "router": True}}
    },
    "balanced experts, packed": {"model": {"path": "mixtral"}},
    "balanced experts, unpacked": {"model": {"path": "mixtral"}, "data": {"pack": False}},
}


def curve(host: PlainHost, plan: Plan) -> list[float]:
    """Losses of the steps and of the evaluation at the end."""
    loop.run(plan, host)
    losses = host.losses() + [record["loss"] for record in host.of("evaluation")]
    host.records.clear()
    return losses


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[float]]:
    result = {case: curve(host, plan) for case, plan in plans.items()}
    DataParallel.scale = _by_the_local_count  # type: ignore[method-assign]
    return {**result, "control": curve(host, plans["full, packed"])}


def _by_the_local_count(self: DataParallel, loss: torch.Tensor, units: int) -> torch.Tensor:
    """The mistake: a worker's gradient is a mean over its own tokens (which here are 40 % fewer or more)."""
    return loss * (self.world / units) * (1.4 if torch.distributed.get_rank() else 0.6)


def plan_of(made: tuple[Path, Any, Path], place: str, sections: dict[str, Any]) -> Plan:
    model, tokens, folder = made
    if name := sections.get("model", {}).get("path"):
        sections = {**sections, "model": {**sections["model"], "path": str(folder / name)}}
    return make_plan(model, tokens, folder / place, **sections)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("parity")
    FAMILIES["mixtral"].make(folder / "mixtral", output_router_logits=True, router_aux_loss_coef=1.0)
    return (
        tiny_llama(folder / "model"),
        make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:7]),
        folder,
    )


@pytest.fixture(scope="module")
def two_processes(made: tuple[Path, Any, Path]) -> dict[str, list[float]]:
    plans = {
        case: plan_of(made, f"two/{case}", {**sections, "scale": {"workers": 2}})
        for case, sections in CASES.items()
    }
    results = run_distributed(curves, plans, world=2)
    return results[0]


@pytest.mark.parametrize("case", CASES)
def test_one_process_equals_two(
    made: tuple[Path, Any, Path], two_processes: dict[str, list[float]], case: str
) -> None:
    alone = curve(PlainHost(), plan_of(made, f"one/{case}", CASES[case]))
    assert len(alone) == 7
    assert two_processes[case] == pytest.approx(alone, abs=1e-5)


def test_control_dividing_by_the_local_count_changes_the_curve(two_processes: dict[str, list[float]]) -> None:
    pairs = zip(two_processes["full, packed"], two_processes["control"], strict=True)
    assert max(abs(right - wrong) for right, wrong in pairs) > 1e-4


@pytest.mark.parametrize("size", [2, 4])
def test_micro_batch_size_changes_nothing(made: tuple[Path, Any, Path], size: int) -> None:
    model, tokens, folder = made
    one = curve(PlainHost(), make_plan(model, tokens, folder / "micro-1"))
    plan = make_plan(model, tokens, folder / f"micro-{size}", train={"micro_batch_size": size})
    assert curve(PlainHost(), plan) == pytest.approx(one, abs=1e-5)


def test_activation_checkpointing_changes_nothing(made: tuple[Path, Any, Path]) -> None:
    model, tokens, folder = made
    for name, sections in {"full": {}, "lora": {"model": ADAPTED}}.items():
        plain = curve(PlainHost(), make_plan(model, tokens, folder / f"{name}-kept", **sections))
        again = {**sections, "train": {"activation_checkpointing": True}}
        plan = make_plan(model, tokens, folder / f"{name}-again", **again)
        assert curve(PlainHost(), plan) == pytest.approx(plain, abs=1e-6)
