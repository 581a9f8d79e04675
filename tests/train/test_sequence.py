"""Workers that hold sequences together give the curve of one process.

Four gloo processes: two groups of two that each hold sequences, or one group of four. float32; losses and gradient norms
agree to 1e-5, as in the parity of data parallelism.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.plan import Plan
from tailor.train import loop, step
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import STRATEGIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LENGTHS = [int(10 + (37 * i) % 50) for i in range(60)]
ADAPTED = {"adapter": LORA}
MEMORY = {"activation_checkpointing": 2, "tiled_mlp": True}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "qlora, checkpointed": {
        "model": {**ADAPTED, "quantize": {"type": "nf4"}},
        "train": MEMORY,
    },
    "joined documents, lora": {"method": {"name": "pretrain"}, "model": ADAPTED},
    "unpacked, regularized": {
        "method": {"name": "sft", "label_smoothing": 0.1, "z_loss": 1e-3, "neftune_alpha": 5},
        "data": {"pack": False},
        "train": {"batch_size": 3, "pose": {"length": 128, "chunks": 3}},
    },
}
FOUR = ("full",)
"""Also with a group of four."""
SHARED = ("fsdp", "zero-2", "zero-3")
"""Strategies that share something out over all four, beside."""
CUT = {"activation_checkpointing": True, "tiled_mlp": True}


def curve(host: PlainHost, plan: Plan) -> list[float]:
    """Losses and gradient norms of the steps, and the loss of the evaluation at the end."""
    loop.run(plan, host)
    numbers = [record[key] for record in host.of("train") for key in ("loss", "grad_norm")]
    numbers += [record["loss"] for record in host.of("evaluation")]
    host.records.clear()
    return numbers


def curves(
    host: PlainHost, plans: dict[str, Plan], control: Plan, refused: Plan, stopped: Plan
) -> dict[str, Any]:
    result: dict[str, Any] = {name: curve(host, plan) for name, plan in plans.items()}
    batch_group = step.batch_group
    # The mistake: each worker of a group takes a micro-batch of its own.
    step.batch_group = lambda session: (host.rank % 2, batch_group(session)[1])  # type: ignore[assignment]
    result["control"] = curve(host, control)
    step.batch_group = batch_group
    try:
        loop.run(refused, host)
    except ModelError as error:
        result["refused"] = str(error)
    host.stop_after = 3
    result["stopped"] = loop.run(stopped, host), host.losses()
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("sequences")
    FAMILIES["gemma2"].make(folder / "gemma2")
    tokens = make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:7])
    return tiny_llama(folder / "model"), tokens, folder


@pytest.fixture(scope="module")
def together(made: tuple[Path, Any, Path]) -> dict[str, Any]:
    model, tokens, folder = made

    def plan(name: str, parts: int, path: Path = model, strategy: str = "ddp", **sections: Any) -> Plan:
        scale = {"workers": 4, "sequence_parallel": parts, "strategy": STRATEGIES[strategy]}
        return make_plan(path, tokens, folder / name, **sections, scale=scale)

    plans = {name: plan(name, 2, **sections) for name, sections in CASES.items()}
    plans |= {f"{name}, 4": plan(f"{name}-4", 4, **CASES[name]) for name in FOUR}
    plans |= {strategy: plan(strategy, 2, strategy=strategy, train=CUT) for strategy in SHARED}
    results = run_distributed(
        curves, plans, plan("control", 2), plan("refused", 2, folder / "gemma2"), plan("stopped", 2), world=4
    )
    return results[0]


@pytest.fixture(scope="module")
def alone(made: tuple[Path, Any, Path]) -> dict[str, list[float]]:
    model, tokens, folder = made
    return {
        name: curve(PlainHost(), make_plan(model, tokens, folder / "one" / name, **sections))
        for name, sections in CASES.items()
    }


@pytest.mark.parametrize("case", [*CASES, *(f"{name}, 4" for name in FOUR)])
def test_the_curve_is_that_of_one_process(together: Any, alone: Any, case: str) -> None:
    expected = alone[case.removesuffix(", 4")]
    assert len(expected) == 13
    assert together[case] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strategy", SHARED)
def test_under_strategies_that_share_weights_out(together: Any, alone: Any, strategy: str) -> None:
    assert together[strategy] == pytest.approx(alone["full"], abs=1e-5)


def test_control_a_micro_batch_for_each_worker_changes_the_curve(together: Any, alone: Any) -> None:
    pairs = zip(together["control"], alone["full"], strict=True)
    assert max(abs(wrong - right) for wrong, right in pairs) > 1e-2


def test_a_model_without_exact_sequence_split_is_rejected(together: Any) -> None:
    assert together["refused"] == (
        "scale.sequence_parallel: Gemma2ForCausalLM gives other results when a sequence is split over workers; "
        "set scale.sequence_parallel: 1"
    )


def test_a_run_resumes_with_fewer_workers(together: Any, alone: Any, made: tuple[Path, Any, Path]) -> None:
    model, tokens, folder = made
    ended, losses = together["stopped"]
    assert ended == "stopped"
    host = PlainHost(resume_from=str(folder / "stopped"))
    loop.run(make_plan(model, tokens, folder / "stopped"), host)
    assert [record["step"] for record in host.of("train")] == [5, 6]
    assert losses + host.losses() == pytest.approx(alone["full"][0:12:2], abs=1e-5)
