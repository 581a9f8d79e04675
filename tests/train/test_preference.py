"""Preference methods in the loop: one reference by three ways, a curve that no hardware changes, and something learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.data.token_store import TokenStore
from tailor.methods import reference as references
from tailor.methods.kto import Kto
from tailor.models.causal import CausalModel
from tailor.plan import Plan
from tailor.store import Store
from tailor.train import loop, session, step
from tailor.train.reference import open_reference
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.preference_stores import pairs, rated, write_groups
from tests.helpers.strategies import under

pytestmark = pytest.mark.slow

ADAPTED = {"adapter": {**LORA, "dropout": 0.1, "modules_to_save": ["lm_head"]}}
DPO, KTO = {"name": "dpo"}, {"name": "kto"}
CASES: dict[str, dict[str, Any]] = {
    "dpo, lora": {"method": DPO, "model": ADAPTED},
    "dpo, full": {"method": {**DPO, "sft_weight": 0.1}},
    "dpo, precomputed": {"method": {**DPO, "loss": "ipo", "reference": "precomputed"}},
    "dpo, unpacked, stock attention": {
        "method": DPO,
        "model": {"attention": "sdpa"},
        "data": {"pack": False},
    },
    "dpo, qlora": {"method": DPO, "model": {"adapter": LORA, "quantize": {"type": "nf4"}}},
    "orpo": {"method": {**DPO, "loss": "orpo"}},
    "dpo, one worker without rows": {"method": DPO, "train": {"batch_size": 3}},
    "kto, lora": {"method": KTO, "model": ADAPTED},
    "kto, full": {"method": KTO},
}
SHARED = {
    "dpo, lora, fsdp": "dpo, lora",
    "dpo, full, fsdp": "dpo, full",
    "kto, lora, fsdp": "kto, lora",
    "dpo, lora, zero-3": "dpo, lora",
    "dpo, full, zero-3": "dpo, full",
    "kto, lora, zero-2": "kto, lora",
}
"""Cases under strategies that share something out, where a copy of the model becomes numbers that are computed before."""
PROMPT = 40, 60
"""Tokens of a prompt, at most. With shorter ones a stream of 64 tokens would have room for both copies."""
FIGURES = ("loss", "reward_accuracy", "reward_margin")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("tokens")
    return {
        "dpo": write_groups(folder / "dpo", pairs(60, prompt=PROMPT), pairs(7, seed=1, prompt=PROMPT)),
        "kto": write_groups(folder / "kto", rated(90), rated(9, seed=1)),
    }


def planned(model: Path, stores: dict[str, TokenStore], run: Path, /, **sections: dict[str, Any]) -> Plan:
    return make_plan(model, stores[sections["method"]["name"]], run, **sections)


def curve(host: PlainHost, plan: Plan) -> list[list[float]]:
    """Loss and figures of the steps and of the evaluation at the end."""
    loop.run(plan, host)
    found = curve_of(host)
    host.records.clear()
    return found


def curve_of(host: PlainHost) -> list[list[float]]:
    records = [*host.of("train"), *host.of("evaluation")]
    return [[record[name] for name in FIGURES] for record in records]


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[list[float]]]:
    result = {case: curve(host, plan) for case, plan in plans.items()}
    step.Totals.over_workers = _of_this_worker  # type: ignore[method-assign]
    return {**result, "control": curve(host, plans["kto, full"])}


def _of_this_worker(self: step.Totals, world: int) -> dict[str, float]:
    """The mistake: each worker's own sums, taken for those of all."""
    return {name: float(value) * world for name, value in self._sums.items()}


@pytest.fixture(scope="module")
def two_processes(
    model: Path, stores: dict[str, TokenStore], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[float]]]:
    folder = tmp_path_factory.mktemp("two")
    plans = {
        case: planned(model, stores, folder / str(number), **{**sections, "scale": {"workers": 2}})
        for number, (case, sections) in enumerate(CASES.items())
    }
    for name, case in SHARED.items():
        scale = under(name.rpartition(", ")[2])
        plans[name] = planned(model, stores, folder / name, **{**CASES[case], "scale": scale})
    found: dict[str, list[list[float]]] = run_distributed(curves, plans, world=2)[0]
    return found


@pytest.mark.parametrize("case", CASES)
def test_one_process_equals_two(
    model: Path, stores: dict[str, TokenStore], two_processes: Any, tmp_path: Path, case: str
) -> None:
    alone = curve(PlainHost(), planned(model, stores, tmp_path / "one", **CASES[case]))
    assert len(alone) == 7
    assert np.array(two_processes[case]) == pytest.approx(np.array(alone), abs=2e-5)


@pytest.mark.parametrize("name", SHARED)
def test_strategies_that_share_the_weights_give_the_same_curve(two_processes: Any, name: str) -> None:
    ddp = np.array(two_processes[SHARED[name]])
    assert np.array(two_processes[name]) == pytest.approx(ddp, abs=2e-5)


def test_control_the_sums_of_one_worker_are_not_those_of_the_batch(two_processes: Any) -> None:
    differences = np.abs(np.array(two_processes["kto, full"]) - np.array(two_processes["control"]))
    assert differences.max(axis=0).min() > 1e-3


@pytest.mark.parametrize("method", [DPO, KTO], ids=["dpo", "kto"])
def test_neither_micro_batches_nor_packing_change_anything(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, method: dict[str, Any]
) -> None:
    """A batch of the whole epoch has the same pairs, packed or not."""
    found = {}
    for name, pack, micro in (("packed", True, 1), ("in threes", True, 3), ("unpacked", False, 5)):
        sections = {
            "data": {"pack": pack},
            "train": {"micro_batch_size": micro, "batch_size": 200, "steps": 3},
        }
        plan = planned(model, stores, tmp_path / name, method=method, **sections)
        found[name] = np.array(curve(PlainHost(), plan))
    assert found["in threes"] == pytest.approx(found["packed"], abs=2e-5)
    assert found["unpacked"] == pytest.approx(found["packed"], abs=2e-5)


@pytest.mark.parametrize("case", ["dpo, lora", "dpo, full"])
def test_activation_checkpointing_changes_nothing(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, case: str
) -> None:
    kept = curve(PlainHost(), planned(model, stores, tmp_path / "kept", **CASES[case]))
    again = planned(
        model, stores, tmp_path / "again", **CASES[case], train={"activation_checkpointing": True}
    )
    assert np.array(curve(PlainHost(), again)) == pytest.approx(np.array(kept), abs=1e-5)


class StoppingHost(PlainHost):
    """Dies after its fifth step was reported."""

    def report(self, record: dict[str, Any]) -> None:
        super().report(record)
        if record["kind"] == "train" and record["step"] == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("case", ["dpo, lora", "dpo, full", "dpo, precomputed", "kto, full"])
def test_stopped_and_gone_on_equals_undisturbed(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, case: str
) -> None:
    """The reference of a resumed run is still the model of its first step."""
    sections = {**CASES[case], "save": {"every": 2}}
    whole = PlainHost()
    loop.run(planned(model, stores, tmp_path / "whole", **sections), whole)
    plan = planned(model, stores, tmp_path / "run", **sections)
    with pytest.raises(KeyboardInterrupt):
        loop.run(plan, StoppingHost())
    again = PlainHost(resume_from=plan.run_url)
    loop.run(plan, again)
    assert again.losses() == whole.losses()[4:]
    assert again.evaluations() == whole.evaluations()


def test_the_reference_is_the_same_by_all_three_ways(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some steps, for an adapter that trains the head beside it too."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name in ("AdapterOff", "Copy", "Precomputed"):
        way = getattr(references, name)

        def kept(
            self: Any, model: Any, batch: Any, way: Any = way.log_probabilities, name: str = name
        ) -> Any:
            found = way(self, model, batch)
            if model.network.training:
                seen.setdefault(name, []).append(found.detach().clone())
            return found

        monkeypatch.setattr(way, "log_probabilities", kept)
    runs = {
        "AdapterOff": {"method": DPO, "model": ADAPTED},
        "Copy": {"method": DPO},
        "Precomputed": {"method": {**DPO, "reference": "precomputed"}},
    }
    for name, sections in runs.items():
        rate = {"optim": {"learning_rate": 0.05}}
        loop.run(planned(model, stores, tmp_path / name, **sections, **rate), PlainHost())
    # The pass that precomputes goes through AdapterOff, outside of training.
    assert len({len(values) for values in seen.values()}) == 1
    for name in ("Copy", "Precomputed"):
        for ours, theirs in zip(seen[name], seen["AdapterOff"], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4), name
    trained = loop.open_session(planned(model, stores, tmp_path / "x", **runs["AdapterOff"]), PlainHost())
    with torch.no_grad():
        for _, weight in trained.model.named_parameters():
            if weight.requires_grad:
                weight += 0.05
    batch = trained.collator("train")(trained.batches.batch(0)[:1])
    moved = trained.model.log_probabilities(batch)
    with trained.model.inference_mode(), trained.model.without_adapter():
        base = trained.model.log_probabilities(batch)
    assert torch.allclose(base, seen["AdapterOff"][0], atol=1e-4)
    assert not torch.allclose(moved, base, atol=0.1)  # control: with the adapter on it is another model
    assert torch.equal(trained.model.log_probabilities(batch), moved)


def test_precomputed_log_probabilities_are_reused_for_the_same_weights_only(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path
) -> None:
    sections = {"method": {**DPO, "reference": "precomputed"}, "train": {"steps": 1}}
    tokens = Store(stores["dpo"].url)

    def kept() -> set[str]:
        return {name for name in tokens.names() if name.startswith("reference-")}

    before = kept()
    first = PlainHost()
    loop.run(planned(model, stores, tmp_path / "first", **sections), first)
    after = kept()
    second = PlainHost()
    loop.run(planned(model, stores, tmp_path / "second", **sections), second)
    assert kept() == after
    assert second.losses() == first.losses()
    assert not any("computed" in record["message"] for record in second.of("status"))
    other = tiny_llama(tmp_path / "other", seed=1)
    loop.run(planned(other, stores, tmp_path / "third", **sections), PlainHost())
    assert len(kept() - before) >= 1
    assert len(kept() - after) == 1


def test_a_pass_ahead_of_training_is_a_pass_without_dropout(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path
) -> None:
    plan = planned(model, stores, tmp_path / "run", method={**DPO, "reference": "precomputed"})
    session = loop.open_session(plan, PlainHost())
    batches = {"train": session.batches, "evaluation": session.evaluation}
    again = open_reference(
        replace(plan, micro_batch_size=2), PlainHost(), session.tokens, session.strategy, batches
    )
    assert not session.model.network.training
    for name in ("train", "evaluation"):
        assert np.allclose(again[1][name], session.reference[name], atol=1e-4)


@pytest.mark.parametrize("shuffled", [False, True], ids=["learned", "control: shuffled labels"])
@pytest.mark.parametrize("method", ["dpo", "simpo", "kto"])
def test_a_preference_is_learned(model: Path, tmp_path: Path, method: str, shuffled: bool) -> None:
    """Training ranks held-out pairs correctly; with random labels, accuracy stays at chance."""
    make = rated if method == "kto" else pairs
    tokens = write_groups(
        tmp_path / "tokens", make(200, shuffled=shuffled), make(200, seed=7, shuffled=shuffled)
    )
    name = {"name": method} if method != "simpo" else {"name": "dpo", "loss": "simpo", "beta": 2.0}
    plan = make_plan(
        model,
        tokens,
        tmp_path / "run",
        model={} if method == "kto" else {"adapter": LORA},
        method=name,
        optim={"learning_rate": 2e-3 if method == "kto" else 5e-3},
        train={"batch_size": 8, "micro_batch_size": 8, "steps": 40},
    )
    host = PlainHost()
    loop.run(plan, host)
    (record,) = host.of("evaluation")
    if shuffled:
        assert 0.35 < record["reward_accuracy"] < 0.65
    else:
        assert record["reward_accuracy"] > 0.95
        assert record["reward_margin"] > 0.5


def test_kto_estimates_the_kl_divergence_once_per_global_batch(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepass_mean: list[float] = []
    plain = Kto.loss

    def loss(self: Kto, model: Any, batch: Any, z0: float) -> Any:
        prepass_mean.append(z0)
        return plain(self, model, batch, z0)

    monkeypatch.setattr(Kto, "loss", loss)
    host = PlainHost()
    loop.run(planned(model, stores, tmp_path / "run", method=KTO, optim={"learning_rate": 1e-2}), host)
    steps = [prepass_mean[4 * step : 4 * step + 4] for step in range(6)]
    assert all(len(set(step)) == 1 for step in steps)
    assert steps[0][0] == 0
    assert len({step[0] for step in steps}) == 6
    shown = [record["divergence"] for record in host.of("train")]
    assert shown == pytest.approx([max(0.0, step[0]) for step in steps], abs=1e-6)


@pytest.mark.parametrize("case", ["dpo, lora", "dpo, precomputed"])
def test_a_shared_prompt_changes_no_curve(
    model: Path,
    stores: dict[str, TokenStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """Every step and the evaluation have fewer tokens to compute, and the same losses and rewards."""
    sections = {**CASES[case]}
    if case == "dpo, lora":  # both answers would have another dropout
        sections["model"] = {"adapter": {**ADAPTED["adapter"], "dropout": 0.0}}
    computed: list[int] = []
    forward = CausalModel.inputs

    def counted(self: CausalModel, batch: Any, *arguments: Any, **options: Any) -> Any:
        computed.append(batch.input_ids.numel())
        return forward(self, batch, *arguments, **options)

    monkeypatch.setattr(CausalModel, "inputs", counted)
    found = {}
    for name in ("shared", "apart"):
        if name == "apart":
            monkeypatch.setattr(session, "shares_prompts", lambda *_: False)
        host = PlainHost()
        # The log-probabilities of the reference are computed again in each way.
        tokens = write_groups(tmp_path / name, pairs(60, prompt=PROMPT), pairs(7, seed=1, prompt=PROMPT))
        loop.run(make_plan(model, tokens, tmp_path / f"run {name}", **sections), host)
        assert all(0 <= record["padding"] < 1 for record in host.of("train"))
        found[name] = np.array(curve_of(host))
        found[name, "tokens"] = sum(computed)
        computed.clear()
    assert found["shared"] == pytest.approx(found["apart"], abs=2e-5)
    assert found["shared", "tokens"] < 0.85 * found["apart", "tokens"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_model_that_cannot_share_is_trained(
    stores: dict[str, TokenStore], tmp_path: Path, strategy: str
) -> None:
    """The probe's error amid a layer with chunks leaves no gathered weights behind."""
    build = FAMILIES["llama4_text"].make
    sections = {"method": DPO, "scale": under(strategy, workers=1), "train": {"steps": 2}}
    host = PlainHost()
    loop.run(planned(build(tmp_path / "model"), stores, tmp_path / "run", **sections), host)
    assert any("a copy each" in record["message"] for record in host.of("status"))
    assert np.isfinite(host.losses()).all()
