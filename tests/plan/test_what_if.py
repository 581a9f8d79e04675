"""Plans for machines that are not here: limits, changes, durations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.plan import ModelFacts, build
from tailor.plan.build import USABLE_MEMORY
from tailor.plan.devices import device
from tailor.plan.duration import duration, flops_per_token
from tailor.plan.facts import DataFacts
from tailor.plan.plan import Plan
from tailor.plan.what_if import Change, WhatIf, replaced, what_if
from tailor.spec.load import load_recipe
from tailor.spec.recipe import Recipe
from tests.plan.test_build import DATA, LLAMA_8B

CONFIG = LLAMA_8B | {"max_position_embeddings": 131072}
RECIPE = """\
model:
  path: org/model
data:
  train: [{path: rows.jsonl}]
method: {name: sft}
optim: {learning_rate: 0.0001}
save: {to: runs/x}
"""
LORA = ("model.adapter.rank=16",)
QLORA = (*LORA, "model.quantize.type=nf4")


class Case:
    """A recipe with overrides on a device."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *overrides: str,
        workers: int = 1,
        data: DataFacts = DATA,
        **config: Any,
    ) -> None:
        self.file = folder / "recipe.yaml"
        self.file.write_text(RECIPE)
        self.overrides = (*overrides, f"scale.workers={workers}")
        self.device, self.data, self.config = device(name, workers), data, CONFIG | config

    def vary(self, further: Sequence[str] = ()) -> Recipe:
        return load_recipe(self.file, replaced(self.overrides, further), check_files=False)

    def build(self, recipe: Recipe, data: DataFacts, hardware: Any) -> Plan:
        return build(recipe, data, self.config, hardware, run_url="runs/x")

    def plan(self, *further: str, **data: int) -> Plan:
        changed = dataclasses.replace(self.data, **data)
        return self.build(self.vary(further), changed, self.device.hardware)

    def fits(self, plan: Plan) -> bool:
        return plan.memory.peak <= USABLE_MEMORY * self.device.hardware.memory_bytes

    def found(self, price: float | None = None) -> WhatIf:
        facts = ModelFacts.from_config(self.config)
        return what_if(self.vary(), self.data, facts, self.device, self.build, self.vary, price)


@pytest.mark.parametrize("overrides", [QLORA, LORA, ("train.activation_checkpointing=true", *QLORA)])
@pytest.mark.parametrize("name", ["h200", "l40s", "cpu-64"])
def test_the_limits_fit_and_one_more_does_not(tmp_path: Path, name: str, overrides: tuple[str, ...]) -> None:
    if name.startswith("cpu"):
        overrides = tuple(word for word in overrides if "quantize" not in word)
    case = Case(tmp_path, name, *overrides)
    found = case.found()
    rows, length = found.micro_batch_size, found.length
    assert rows > 0
    for count in (rows, rows + 1):
        plan = case.plan(f"train.micro_batch_size={count}", max_rows=count, rows_per_batch=count)
        assert case.fits(plan) == (count == rows)
    for tokens in (length,) if found.length_is_model_maximum else (length, length + 1):
        plan = case.plan("train.micro_batch_size=1", longest=tokens, longest_row=tokens, max_rows=1)
        assert case.fits(plan) == (tokens == length)
    assert found.fits
    assert found.change is None


def test_the_length_ends_at_the_positions_of_the_model(tmp_path: Path) -> None:
    case = Case(tmp_path, "h200", *QLORA, "train.activation_checkpointing=true", max_position_embeddings=4096)
    found = case.found()
    assert (found.length, found.length_is_model_maximum) == (4096, True)
    with pytest.raises(ModelError, match="4097 tokens"):
        case.plan(longest=4097, longest_row=4097)


CHANGES: dict[str, tuple[str, tuple[str, ...], int, tuple[str, ...] | None]] = {
    "recompute": ("4090", LORA, 1, ("train.activation_checkpointing=true",)),
    "smaller micro-batches": (
        "l40s",
        (*LORA, "train.activation_checkpointing=true", "train.micro_batch_size=32"),
        1,
        ("train.micro_batch_size=1",),
    ),
    "an adapter": ("l40s", (), 1, ("model.adapter.rank=16",)),
    "shards are chosen anyway": ("a100-80", (), 8, None),
    "shards": ("a100-80", ("scale.strategy=ddp",), 8, ("scale.strategy=fsdp",)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_cheapest_change_is_enough(tmp_path: Path, name: str) -> None:
    chosen, overrides, workers, expected = CHANGES[name]
    case = Case(tmp_path, chosen, *overrides, workers=workers)
    change = case.found().change
    assert (None if change is None else change.overrides) == expected
    if change is not None:
        assert not case.fits(case.plan())
        changed = case.plan(*change.overrides)
        assert case.fits(changed)
        assert change == Change(change.overrides, changed.memory.peak)


def test_nothing_makes_a_huge_model_fit(tmp_path: Path) -> None:
    found = Case(tmp_path, "4090", num_hidden_layers=2000).found()
    assert (found.fits, found.change, found.micro_batch_size, found.length) == (False, None, 0, 0)


def test_operations_of_a_token(tmp_path: Path) -> None:
    """Llama 3 8B: 7.5 billion weights are multiplied with each token."""
    case = Case(tmp_path, "h100-80", *LORA)
    facts = ModelFacts.from_config(CONFIG)
    weights = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336) + 128256 * 4096
    assert facts.active_parameters == weights

    def counted(*further: str, data: DataFacts = case.data) -> float:
        return flops_per_token(case.plan(*further), facts, data)

    frozen = counted()
    assert frozen == pytest.approx(4 * weights, rel=0.05)
    again = counted("train.activation_checkpointing=true") - frozen
    assert again == pytest.approx(2 * weights, rel=0.05)
    everything = Case(tmp_path, "h100-80", workers=8)
    assert flops_per_token(everything.plan(), facts, DATA) == pytest.approx(6 * weights, rel=0.05)
    longer = dataclasses.replace(DATA, examples=10)
    assert counted(data=longer) > 1.02 * frozen  # longer documents attend to more tokens


def test_experts_that_a_token_is_not_routed_to_cost_no_time() -> None:
    mixtral = CONFIG | {"num_local_experts": 8, "num_experts_per_tok": 2}
    sparse, dense = ModelFacts.from_config(mixtral), ModelFacts.from_config(CONFIG)
    assert sparse.linear_parameters > 4 * dense.linear_parameters
    assert sparse.active_parameters < 2 * dense.active_parameters


def test_duration_and_price(tmp_path: Path) -> None:
    one, four = (Case(tmp_path, "h100-80", *QLORA, workers=count).found(price=2.5) for count in (1, 4))
    assert one.duration.tokens == 1_500_000  # 90 steps of 30 per epoch of 500,000 tokens
    assert one.duration.low < one.duration.seconds < one.duration.high
    assert one.duration.seconds / 4 <= four.duration.seconds < one.duration.seconds / 2
    assert one.price == pytest.approx(2.5 * one.duration.seconds / 3600)
    assert one.price_low is not None
    assert one.price_high is not None
    assert one.price_low < one.price_high
    assert Case(tmp_path, "h100-80", *QLORA).found().price is None
    slow = Case(tmp_path, "cpu-24", *LORA).found()
    assert slow.duration.seconds > 50 * one.duration.seconds


def test_a_small_model_is_limited_by_its_kernels(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    case = Case(tmp_path, "h100-80", vocab_size=1000, **small)
    plan, facts = case.plan(), ModelFacts.from_config(case.config)
    found = duration(plan, facts, case.data, case.device)
    assert found.seconds == pytest.approx(90 * plan.accumulation * 32 * 1e-3)
