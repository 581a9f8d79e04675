"""A run with any strategy resumes from its checkpoint as if it had never stopped, also with another number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tailor.artifacts.consolidate import consolidate
from tailor.plan import Plan
from tailor.store import Store, run_folder
from tailor.train import loop, sharded_checkpoint
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import STRATEGIES, under

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECTIONS: dict[str, Any] = {
    "optim": {"schedule": "cosine", "warmup_steps": 2},
    "save": {"every": 2, "keep": 2},
    "evaluate": {"every": 3},
    "train": {"steps": 6},
}
MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": {"adapter": {**LORA, "dropout": 0.1}}},
}
RATIOS = {"full": {"embeddings": 0.5, "head": 2}, "lora": {"lora_b": 4}}
CASES = [(name, "full") for name in STRATEGIES] + [("fsdp", "lora"), ("zero-3", "lora")]

Made = tuple[Path, Any, Path]


class Stopped(Exception):
    pass


class Dying(PlainHost):
    """Every worker dies after step 5, without a word."""

    def stopping(self) -> bool:
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked > 6:  # once a step, and once in the evaluation of step 3
            raise Stopped
        return False


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("resume")
    return (
        tiny_llama(folder / "model"),
        make_store(folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30]),
        folder,
    )


def plan_of(made: Made, run: Path, strategy: str, model: str, workers: int = 2) -> Plan:
    optim = {**SECTIONS["optim"], "learning_rate_ratios": RATIOS[model]}
    sections = {**SECTIONS, "optim": optim, **MODELS[model], "scale": under(strategy, workers)}
    return make_plan(made[0], made[1], run, **sections)


def _runs(host: PlainHost, pairs: dict[str, tuple[Plan, Plan]]) -> dict[str, Any]:
    """Undisturbed; killed after step 5 and gone on from step 4; without the optimizer's state, as a control."""
    found: dict[str, Any] = {}
    for name, (whole, broken) in pairs.items():
        loop.run(whole, host)
        records = [_numbers(host)]
        dying = Dying(host.rank, host.world)
        try:
            loop.run(broken, dying)
            raise AssertionError("it did not die")
        except Stopped:
            pass
        torch.distributed.barrier()
        host.resume_from = broken.run_url
        at = run_folder.latest_checkpoint(Store(broken.run_url))
        loop.run(broken, host)
        records.append(_numbers(host))
        host.resume_from = None
        found[name] = (at, *records)
    return found


def _numbers(host: PlainHost) -> list[tuple[int, float, float]]:
    found = [(r["step"], r["loss"], r.get("grad_norm", 0.0)) for r in host.records if "loss" in r]
    host.records.clear()
    return found


@pytest.fixture(scope="module")
def resumed(made: Made) -> dict[str, Any]:
    pairs = {
        f"{strategy} {model}": (
            plan_of(made, made[2] / "whole" / strategy / model, strategy, model),
            plan_of(made, made[2] / "broken" / strategy / model, strategy, model),
        )
        for strategy, model in CASES
    }
    return run_distributed(_runs, pairs, world=2)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("strategy", "model"), CASES)
def test_killed_and_gone_on_equals_undisturbed(resumed: Any, made: Made, strategy: str, model: str) -> None:
    at, whole, again = resumed[f"{strategy} {model}"]
    assert at.endswith("step-00000004")
    assert {step for step, *_ in again} == {5, 6}
    assert again == [record for record in whole if record[0] > 4]
    file = "model/model.safetensors" if model == "full" else "adapter/adapter_model.safetensors"
    folders = [made[2] / kind / strategy / model for kind in ("whole", "broken")]
    assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


@pytest.mark.parametrize(("strategy", "model"), [("fsdp", "full"), ("zero-2", "full"), ("zero-3", "lora")])
def test_a_checkpoint_in_parts_is_consolidated(
    resumed: Any, made: Made, tmp_path: Path, strategy: str, model: str
) -> None:
    """That of the last step holds what the artifact holds; that of an earlier one does not."""
    run = made[2] / "whole" / strategy / model
    Store(str(run)).write_json("plan.json", plan_of(made, run, strategy, model).as_dict())
    for step, same in ((6, True), (4, False)):
        url = str(run / "checkpoints" / f"step-{step:08d}")
        assert sharded_checkpoint.is_sharded(Path(url))
        kind, of = consolidate(url, tmp_path / str(step))
        assert (kind, of.url) == ("model" if model == "full" else "adapter", str(run))
        file = "model.safetensors" if model == "full" else "adapter_model.safetensors"
        ours, theirs = load_file(tmp_path / str(step) / file), load_file(run / kind / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs) == same


def _go_on(host: PlainHost, plans: dict[str, Plan], stop: int | None) -> dict[str, Any]:
    found = {}
    for name, plan in plans.items():
        host.resume_from, host.stop_after = plan.run_url, stop
        ended = loop.run(plan, host)
        assert ended == ("finished" if stop is None else "stopped")
        found[name] = _numbers(host)
    return found


CHANGES = {
    "fsdp": ("fsdp", "fsdp", "fsdp"),
    "zero-1": ("zero-1", "zero-1", "zero-1"),
    "zero-3": ("zero-3", "zero-3", "zero-3"),
    "every one": ("ddp", "fsdp", "zero-2"),
    "and back": ("zero-3", "ddp", "fsdp"),
}


@pytest.fixture(scope="module")
def elastic(made: Made) -> dict[str, list[tuple[int, float, float]]]:
    """Two steps with two workers, two with one, two with two again."""

    def plans(part: int, workers: int) -> dict[str, Plan]:
        return {
            name: plan_of(made, made[2] / name, how[part], "full", workers) for name, how in CHANGES.items()
        }

    found: list[dict[str, Any]] = []
    for part, (workers, stop) in enumerate([(2, 2), (1, 4), (2, None)]):
        found.append(run_distributed(_go_on, plans(part, workers), stop, world=workers)[0])
    return {name: [record for part in found for record in part[name]] for name in CHANGES}


@pytest.mark.parametrize("name", CHANGES)
def test_two_one_and_two_workers_give_the_curve_of_one(elastic: Any, made: Made, name: str) -> None:
    host = PlainHost()
    loop.run(plan_of(made, made[2] / "one" / name, "ddp", "full", 1), host)
    alone = _numbers(host)
    assert [step for step, *_ in elastic[name]] == [step for step, *_ in alone]
    for found, expected in zip(elastic[name], alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def _forgetful(host: PlainHost, plan: Plan) -> list[tuple[int, float, float]]:
    """The control: the optimizer's state is not read."""
    sharded_checkpoint.ShardedReader.read = _zeros  # type: ignore[method-assign]
    host.resume_from = plan.run_url
    loop.run(plan, host)
    return _numbers(host)


_read = sharded_checkpoint.ShardedReader.read


def _zeros(self: Any, name: str, start: int, stop: int, key: str | None = None) -> torch.Tensor:
    values = _read(self, name, start, stop, key)
    return values if key is None else torch.zeros_like(values)


def test_control_without_the_optimizers_state_it_differs(resumed: Any, made: Made) -> None:
    plan = plan_of(made, made[2] / "broken" / "fsdp" / "full", "fsdp", "full")
    newest = made[2] / "broken" / "fsdp" / "full" / "checkpoints" / "step-00000006"
    newest.rename(newest.with_name("aside"))
    found: Callable[..., Any] = run_distributed(_forgetful, plan, world=2)[0]
    assert [record for record in resumed["fsdp full"][1] if record[0] > 5] != found[-1:]  # type: ignore[index]
