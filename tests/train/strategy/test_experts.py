"""Mixtures of experts under every strategy: two workers give the curve, the artifact and the checkpoints of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tailor.artifacts.consolidate import consolidate
from tailor.models.router import Router
from tailor.plan import Plan
from tailor.store import Store
from tailor.train import loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.mixtures import MIXTURES
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import STRATEGIES, curve, under
from tests.train.strategy.test_resume import Dying, Stopped

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(600)]

LENGTHS = [int(10 + (37 * i) % 50) for i in range(60)]
LOSSES = {"router_aux_loss": 0.5, "router_z_loss": 0.1}
EXPERTS = {"adapter": {**LORA, "experts": True, "router": True}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("mixtral", LOSSES),
    "lora": ("mixtral", {"adapter": LORA, **LOSSES}),
    "experts": ("mixtral", {**EXPERTS, **LOSSES}),
    "router with buffers": ("glm4_moe", {**EXPERTS, "router_z_loss": 0.1}),
    "nf4": ("mixtral", {"quantize": {"type": "nf4"}, "adapter": {**LORA, "experts": True}}),
}
SAMPLE = "fsdp router with buffers"
CASES = {
    f"{strategy} {model}": (model, under(strategy))
    for strategy in STRATEGIES
    for model in MODELS
    if model != "nf4" or strategy in ("ddp", "zero-1", "zero-2")
} | {
    f"sequence {model}": (model, {"workers": 2, "sequence_parallel": 2})
    for model in ("whole", "experts alone")
}
MODELS |= {"whole": ("mixtral", {}), "experts alone": ("mixtral", EXPERTS)}


class Made:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:7])
        for name in {family for family, _ in MODELS.values()}:
            MIXTURES[name].make(folder / name)

    def plan(self, run: str, model: str, scale: dict[str, Any]) -> Plan:
        family, section = MODELS[model]
        sections = {"train": {"steps": 6}, "save": {"every": 2, "keep": 3}, "evaluate": {"every": 3}}
        return make_plan(
            self.folder / family, self.tokens, self.folder / run, model=section, scale=scale, **sections
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("mixtures"))


def _whole_and_resumed(host: PlainHost, plans: dict[str, tuple[Plan, Plan]]) -> dict[str, Any]:
    """Curves: undisturbed, and from the newest checkpoint after the workers died."""
    found = {}
    for name, (whole, broken) in plans.items():
        curves = [curve(host, whole)]
        with pytest.raises(Stopped):
            loop.run(broken, Dying(host.rank, host.world))
        torch.distributed.barrier()
        host.resume_from = broken.run_url
        curves.append(curve(host, broken))
        host.resume_from = None
        found[name] = curves
    return found


def check(made: Made, case: str, whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    model, _ = CASES[case]
    alone = curve(PlainHost(), made.plan(f"one/{model}", model, {"workers": 1}))
    for name, values in alone.items():
        assert whole[name] == pytest.approx(values, abs=1e-5), name
    assert len(resumed["losses"]) in (2, 4)
    assert resumed["losses"] == whole["losses"][-len(resumed["losses"]) :]
    kind, file = ("model", "model") if model in ("full", "whole") else ("adapter", "adapter_model")
    runs = [made.folder / run for run in (f"two/{case}", f"one/{model}", f"broken/{case}")]
    ours, theirs, again = (load_file(run / kind / f"{file}.safetensors") for run in runs)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].numpy() == pytest.approx(tensor.numpy(), abs=5e-5), name
        assert torch.equal(ours[name], again[name]), name


def plans_of(made: Made, case: str) -> tuple[Plan, Plan]:
    model, scale = CASES[case]
    whole, broken = (made.plan(f"{run}/{case}", model, scale) for run in ("two", "broken"))
    return whole, broken


def test_adapters_on_experts_and_their_routers_are_sharded(made: Made, tmp_path: Path) -> None:
    plans = plans_of(made, SAMPLE)
    found = run_distributed(_whole_and_resumed, {SAMPLE: plans}, world=2)[0]
    check(made, SAMPLE, *found[SAMPLE])
    run = made.folder / "two" / SAMPLE
    Store(str(run)).write_json("plan.json", plans[0].as_dict())
    for step, same in ((6, True), (4, False)):
        kind, _ = consolidate(str(run / "checkpoints" / f"step-{step:08d}"), tmp_path / str(step))
        ours, theirs = (
            load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / str(step), run / kind)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs) == same


def test_every_strategy(made: Made) -> None:
    plans = {case: plans_of(made, case) for case in CASES if case != SAMPLE}
    for case, found in run_distributed(_whole_and_resumed, plans, world=2)[0].items():
        check(made, case, *found)


def _without_the_balance(host: PlainHost, plan: Plan) -> dict[str, list[float]]:
    losses = Router.losses
    Router.losses = lambda self, *batch: losses(Router(self.top_k, 0.0, 0.1), *batch)  # type: ignore[method-assign]
    return curve(host, plan)


def test_control_a_loss_less_is_noticed(made: Made) -> None:
    plan = made.plan("control", "experts", under("fsdp"))
    found = run_distributed(_without_the_balance, plan, world=2)[0]
    alone = curve(PlainHost(), made.plan("control-one", "experts", {"workers": 1}))
    assert abs(found["losses"][0] - alone["losses"][0]) > 1e-2
