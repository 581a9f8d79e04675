"""A step whose gradients are out of bounds stops the run, is left out, or takes the weights back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import TrainingError
from tailor.train import loop
from tailor.train.step import SessionContext
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("divergence")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", [20, 33, 41, 25] * 9)


def sections(**divergence: Any) -> dict[str, dict[str, Any]]:
    train = {"divergence": divergence, "steps": 8}
    return {"model": {"adapter": LORA}, "train": train, "save": {"every": 2}}


class Norms(PlainHost):
    def norms(self) -> list[float]:
        return [record["grad_norm"] for record in self.of("train")]

    def diverged(self) -> list[int]:
        return [record["step"] for record in self.of("train") if record.get("diverged")]


@pytest.fixture(scope="module")
def calm(made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Norms:
    """The run in which no step diverges."""
    host = Norms()
    loop.run(make_plan(*made, tmp_path_factory.mktemp("calm"), **sections()), host)
    return host


def only_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradient of this step (from 1) huge."""
    from tailor.train.step import StepRunner
    from tailor.train.strategy.ddp import DataParallel

    measured = DataParallel.gradient_norm
    now = [0]

    def huge(self: Any) -> float:
        norm = measured(self)
        return 1e9 if now[0] == step else norm

    make_step = StepRunner.step

    def stepping(self: Any, number: int, work: Any) -> Any:
        now[0] = self.now = number + 1
        return make_step(self, number, work)

    monkeypatch.setattr(DataParallel, "gradient_norm", huge)
    monkeypatch.setattr(StepRunner, "step", stepping)


def test_by_default_it_stops_and_names_the_rows(made: tuple[Path, Any], tmp_path: Path, calm: Norms) -> None:
    limit = calm.norms()[0] / 2
    with pytest.raises(TrainingError) as caught:
        loop.run(make_plan(*made, tmp_path, **sections(grad_norm=limit)), Norms())
    assert "step 1: the loss is 6." in caught.value.message
    assert f"the gradient norm {calm.norms()[0]:.3}" in caught.value.message
    assert "its rows: source 0 row" in caught.value.message
    assert "train.divergence" in str(caught.value.hint)


def test_a_skipped_step_changes_no_weight(
    made: tuple[Path, Any], tmp_path: Path, calm: Norms, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_at(5, monkeypatch)
    host = Norms()
    loop.run(make_plan(*made, tmp_path, **sections(action="skip", grad_norm=1e6)), host)
    assert host.diverged() == [5]
    assert host.losses()[:5] == calm.losses()[:5]
    assert host.losses()[5:] != calm.losses()[5:]
    said = [record["message"] for record in host.of("status") if "diverged" in record["message"]]
    assert len(said) == 1
    assert "step 5 diverged (loss " in said[0]
    assert "): its update is skipped; its rows: source 0 row" in said[0]


def test_a_reload_is_as_if_the_steps_since_the_checkpoint_were_skipped(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_at(6, monkeypatch)
    reloaded = Norms()
    loop.run(make_plan(*made, tmp_path / "a", **sections(action="reload", grad_norm=1e6)), reloaded)
    monkeypatch.undo()
    from tailor.train.step import StepRunner

    monkeypatch.setattr(StepRunner, "_diverged", lambda self, loss, norm: self.now in (5, 6))
    only_at(0, monkeypatch)
    skipped = Norms()
    loop.run(make_plan(*made, tmp_path / "b", **sections(action="skip", grad_norm=1e6)), skipped)
    assert reloaded.diverged() == [6]
    assert skipped.diverged() == [5, 6]
    assert reloaded.losses()[6:] == skipped.losses()[6:]
    assert reloaded.losses()[5] != skipped.losses()[5], "the control: step 5 was made, and taken back"
    adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in "ab"]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_reload_without_a_checkpoint_stops(made: tuple[Path, Any], tmp_path: Path, calm: Norms) -> None:
    plan = make_plan(*made, tmp_path, **sections(action="reload", grad_norm=calm.norms()[0] / 2))
    with pytest.raises(TrainingError, match=r"\(action: reload, but there is no checkpoint yet\); its rows"):
        loop.run(plan, Norms())


def test_too_many_in_a_row_stop_the_run_also_after_a_resume(made: tuple[Path, Any], tmp_path: Path) -> None:
    plan = make_plan(*made, tmp_path, **sections(action="skip", grad_norm=1e-9, limit=3))
    host = Norms()
    with pytest.raises(
        TrainingError,
        match=r"step 4: .* \(4 diverged steps in a row; train.divergence.limit is 3\); its rows",
    ):
        loop.run(plan, host)
    assert host.diverged() == [1, 2, 3]
    with pytest.raises(TrainingError, match=r"step 4: .* 4 steps in a row"):
        loop.run(plan, Norms(resume_from=plan.run_url))


def test_stopped_after_a_reload_it_resumes_from_the_older_weights(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_at(5, monkeypatch)
    whole = Norms()
    loop.run(make_plan(*made, tmp_path / "whole", **sections(action="reload", grad_norm=1e6)), whole)
    plan = make_plan(*made, tmp_path / "cut", **sections(action="reload", grad_norm=1e6))
    loop.run(plan, Norms(stop_after=5))
    again = Norms(resume_from=plan.run_url)
    loop.run(plan, again)
    assert again.losses() == whole.losses()[6:] != []


def test_a_reload_goes_back_to_the_same_place_however_the_run_was_stopped(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that a signal made, at step 5, is none to go back to."""
    only_at(6, monkeypatch)
    options = {**sections(action="reload", grad_norm=1e6), "save": {"every": 3, "keep": 1}}
    whole = Norms()
    loop.run(make_plan(*made, tmp_path / "whole", **options), whole)
    plan = make_plan(*made, tmp_path / "cut", **options)
    first = Norms(stop_after=4)
    assert loop.run(plan, first) == "stopped"
    assert first.of("checkpoint")[-1]["step"] == 5
    again = Norms(resume_from=plan.run_url)
    loop.run(plan, again)
    assert again.losses() == whole.losses()[5:]


def on_two(host: PlainHost, plan: Any) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        only_at(6, patch)
        loop.run(plan, host)
    return host.losses()


def test_two_workers_reload_together(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = sections(action="reload", grad_norm=1e6)
    two = run_distributed(on_two, make_plan(*made, tmp_path / "two", **options, scale={"workers": 2}))
    one = on_two(PlainHost(), make_plan(*made, tmp_path / "one", **options))
    assert two[0] == pytest.approx(one, abs=1e-5)


class Infinite(torch.autograd.Function):
    """Passes a loss on, and sends infinity back."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize("overflows", [3, 40])
def test_in_fp16_overflows_are_the_scalers_to_mend_while_it_can(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overflows: int
) -> None:
    """After 17 of them the scale, at first 2^16, is under 1, and no smaller one would help."""
    right = SessionContext.backward

    def backward(self: SessionContext, loss: torch.Tensor, denominator: int = 1) -> None:
        assert self._step is not None
        right(self, Infinite.apply(loss) if self._step < overflows else loss, denominator)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(SessionContext, "backward", backward)
    host = Norms()
    train = {"steps": 24, "precision": "fp16"}
    plan = make_plan(*made, tmp_path, model={"adapter": LORA}, train=train)
    if overflows == 3:
        loop.run(plan, host)
    else:
        with pytest.raises(TrainingError, match=r"^step 18: the loss is \d.*, the gradient norm (inf|nan);"):
            loop.run(plan, host)
    left_out = [record["step"] for record in host.of("train") if record.get("overflowed")]
    assert left_out == list(range(1, min(overflows, 17) + 1))
    assert not host.diverged()
