"""With any optimizer, a run that is stopped and resumed equals one that never stopped, and workers change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tailor.plan import Plan
from tailor.store import Store, run_folder
from tailor.train import checkpoint, loop
from tailor.train.schedule_free import PROGRESS
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

RATIOS = {"lora_b": 16, "embeddings": 0.1, "head": 2}
SAVED = {"adapter": {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}}
UNTIED = {"model": {"path": "untied"}}
CASES: dict[str, dict[str, Any]] = {
    "muon": {
        **UNTIED,
        "optim": {"optimizer": "muon", "weight_decay": 0.1, "schedule": "wsd", "decay_ratio": 0.5},
    },
    "schedule_free": {
        **UNTIED,
        "optim": {
            "optimizer": "schedule_free",
            "weight_decay": 0.1,
            "schedule": "constant",
            "warmup_steps": 2,
        },
    },
    "ratios": {
        "model": {**UNTIED["model"], **SAVED},
        "optim": {
            "learning_rate_ratios": RATIOS,
            "schedule": "cosine_with_restarts",
            "min_learning_rate": 1e-4,
            "weight_decay": 0.1,
        },
    },
}
COMMON: dict[str, Any] = {"save": {"every": 2, "keep": 9}, "evaluate": {"every": 3}, "train": {"steps": 6}}
Made = tuple[Path, Any, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("optimizers")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30])
    return tiny_llama(folder / "untied", tie_word_embeddings=False), tokens, folder


def plan_of(made: Made, case: str, run: Path, **sections: dict[str, Any]) -> Plan:
    if case == "schedule_free":
        pytest.importorskip("schedulefree")
    values = {**COMMON, **CASES[case]}
    values["model"] = {**values["model"], "path": str(made[0])}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return make_plan(made[0], made[1], run, **values)


def losses(*hosts: PlainHost) -> list[float]:
    return [record["loss"] for host in hosts for kind in ("train", "evaluation") for record in host.of(kind)]


def artifact(run: Path) -> dict[str, torch.Tensor]:
    file = run / "model" / "model.safetensors"
    return load_file(file if file.exists() else run / "adapter" / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bit_equal(made: Made, tmp_path: Path, case: str) -> None:
    whole, first = PlainHost(), PlainHost(stop_after=3)
    loop.run(plan_of(made, case, tmp_path / "whole"), whole)
    plan = plan_of(made, case, tmp_path / "run")
    assert loop.run(plan, first) == "stopped"
    again = PlainHost(resume_from=plan.run_url)
    assert loop.run(plan, again) == "finished"
    assert sorted(losses(first, again)) == sorted(losses(whole))
    assert equal(artifact(tmp_path / "run"), artifact(tmp_path / "whole"))


@pytest.mark.parametrize("case", ["muon", "schedule_free"])
def test_control_without_a_part_of_the_state_it_is_not(made: Made, tmp_path: Path, case: str) -> None:
    """The state of one weight for Muon, the progress of the average for the schedule-free optimizer."""
    plan = plan_of(made, case, tmp_path)
    whole, first = PlainHost(), PlainHost(stop_after=3)
    loop.run(plan_of(made, case, tmp_path / "whole"), whole)
    loop.run(plan, first)
    load = checkpoint.load

    def forgetting(url: str, strategy: Any) -> checkpoint.State:
        state = load(url, strategy)
        if case == "muon":
            next(value for value in strategy.optimizer.state.values() if "momentum_buffer" in value).clear()
        for group in strategy.optimizer.param_groups if case == "schedule_free" else ():
            group |= dict.fromkeys(PROGRESS, 0)
        return state

    again = PlainHost(resume_from=plan.run_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", forgetting)
        loop.run(plan, again)
    assert sorted(losses(first, again)) != sorted(losses(whole))


def test_ratios_may_change_on_resume(made: Made, tmp_path: Path) -> None:
    """The optimizer's state is found by the names of the weights, although the groups are others."""
    plan = plan_of(made, "ratios", tmp_path)
    loop.run(plan, PlainHost(stop_after=4))
    saved = torch.load(Path(run_folder.latest_checkpoint(Store(plan.run_url)) or "") / "optimizer.pt")
    states = {name: saved["state"][number]["exp_avg"] for number, name in enumerate(saved["names"])}
    other = plan_of(made, "ratios", tmp_path, optim={"learning_rate_ratios": {"head": 0.5}})
    read: dict[str, torch.Tensor] = {}
    load = checkpoint.load

    def remembering(url: str, strategy: Any) -> checkpoint.State:
        state = load(url, strategy)
        for name, parameter in strategy.model.named_parameters():
            if parameter in strategy.optimizer.state:
                read[name] = strategy.optimizer.state[parameter]["exp_avg"].clone()
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", remembering)
        loop.run(other, PlainHost(resume_from=plan.run_url))
    assert equal(read, states)


def test_a_schedule_free_run_saves_the_averaged_weights(made: Made, tmp_path: Path) -> None:
    """In the checkpoint, the artifact and the evaluations alike; evaluating more often changes no loss."""
    plan = plan_of(made, "schedule_free", tmp_path / "one")
    host = PlainHost()
    loop.run(plan, host)
    newest = Path(run_folder.latest_checkpoint(Store(plan.run_url)) or "")
    weights, saved = load_file(newest / "weights.safetensors"), torch.load(newest / "optimizer.pt")
    made_of = artifact(tmp_path / "one")
    assert all(torch.equal(made_of[name.removeprefix("network.")], value) for name, value in weights.items())
    trained = {name: saved["state"][number]["y"] for number, name in enumerate(saved["names"])}
    assert not equal(trained, weights), "control: training had other weights"
    often = PlainHost()
    loop.run(plan_of(made, "schedule_free", tmp_path / "often", evaluate={"every": 1}), often)
    assert often.losses() == host.losses()
    assert equal(artifact(tmp_path / "often"), made_of)
    # A run from the artifact starts with the evaluation loss that this one ended with.
    again = make_plan(
        tmp_path / "one" / "model",
        made[1],
        tmp_path / "again",
        optim={"learning_rate": 1e-12},
        train={"steps": 1},
    )
    start = PlainHost()
    loop.run(again, start)
    assert start.of("evaluation")[-1]["loss"] == pytest.approx(host.of("evaluation")[-1]["loss"], abs=1e-6)


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[float]]:
    """The losses of each run. Muon orthogonalizes in float32: in its bf16, the rounding of a sum of gradients spreads to
    3e-5 of the losses."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
        for case, plan in plans.items():
            loop.run(plan, host)
            found[case] = losses(host)
            host.records.clear()
    return found


@pytest.mark.slow
def test_two_workers_and_other_micro_batches_give_the_curve_of_one(made: Made, tmp_path: Path) -> None:
    cases = [case for case in CASES if case != "schedule_free" or pytest.importorskip("schedulefree")]
    two = {case: plan_of(made, case, tmp_path / "two" / case, scale={"workers": 2}) for case in cases}
    workers, *_ = run_distributed(curves, two)
    alone = curves(PlainHost(), {case: plan_of(made, case, tmp_path / "one" / case) for case in cases})
    large = {
        case: plan_of(made, case, tmp_path / "large" / case, train={"micro_batch_size": 4}) for case in cases
    }
    whole = curves(PlainHost(), large)
    for case in cases:
        assert len(alone[case]) == 8
        assert workers[case] == pytest.approx(alone[case], abs=1e-5)
        assert whole[case] == pytest.approx(alone[case], abs=1e-5)
