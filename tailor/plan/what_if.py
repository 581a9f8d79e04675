"""What a recipe needs on a device that is not here: the limits of its memory, and the cheapest change that makes it fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.errors import TailorError
from tailor.plan import beacon
from tailor.plan.build import USABLE_MEMORY
from tailor.plan.devices import Device
from tailor.plan.duration import Duration, duration
from tailor.plan.facts import DataFacts, Hardware, ModelFacts
from tailor.plan.plan import Plan
from tailor.spec.recipe import Recipe

MAX_ROWS = 4096
"""Largest micro-batch that is tried, in rows."""
MAX_LENGTH = 1 << 22
"""Longest row that is tried, in tokens, if the model states no maximum."""
MAX_CHANGES = 3
"""Maximum number of changes that are tried together."""

Build = Callable[[Recipe, DataFacts, Hardware], Plan]


@dataclass(frozen=True)
class Change:
    """Overrides of recipe keys, and the memory with them."""

    overrides: tuple[str, ...]
    peak: int
    """Bytes."""


@dataclass(frozen=True)
class WhatIf:
    """The limits of a recipe on a device."""

    device: str
    workers: int
    memory_bytes: int
    fits: bool
    """Whether the forecast is within the part of the memory that a plan uses."""
    micro_batch_size: int
    """Largest micro-batch that fits, in rows of the data's longest length; 0 if no row fits."""
    length: int
    """Longest row that fits, in tokens, alone in its micro-batch; 0 if none does."""
    length_is_model_maximum: bool
    change: Change | None
    """The cheapest change that makes the recipe fit, if it does not and there is one."""
    duration: Duration
    price: float | None
    """Of the duration, if the price of an hour is given."""
    price_low: float | None
    price_high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def what_if(
    recipe: Recipe,
    data: DataFacts,
    facts: ModelFacts,
    device: Device,
    build: Build,
    vary: Callable[[Sequence[str]], Recipe],
    price_per_hour: float | None = None,
) -> WhatIf:
    """Try a recipe on a device. vary: the recipe with further overrides, or a RecipeError. price_per_hour: of all workers."""
    plan = build(recipe, data, device.hardware)
    spent = duration(plan, facts, data, device)
    prices = [
        None if price_per_hour is None else seconds / 3600 * price_per_hour
        for seconds in (spent.seconds, spent.low, spent.high)
    ]
    limit, first = facts.positions or MAX_LENGTH, 1
    if (windows := recipe.model.beacon) is not None:  # every row must be longer than a window
        first = windows.window + 1
        limit = beacon.context(windows, facts.positions) if facts.positions else MAX_LENGTH
    length = _largest(
        lambda length: _fits(_of_length(recipe, data, length, device, build), device), limit, first
    )
    fits = _fits(plan, device)
    return WhatIf(
        device=device.name,
        workers=plan.workers,
        memory_bytes=device.hardware.memory_bytes,
        fits=fits,
        micro_batch_size=_largest(
            lambda rows: _fits(_of_rows(recipe, data, rows, device, build), device), MAX_ROWS
        ),
        length=length,
        length_is_model_maximum=facts.positions is not None and length == limit,
        change=None if fits else cheapest(plan, data, device, build, vary),
        duration=spent,
        price=prices[0],
        price_low=prices[1],
        price_high=prices[2],
    )


def cheapest(
    plan: Plan, data: DataFacts, device: Device, build: Build, vary: Callable[[Sequence[str]], Recipe]
) -> Change | None:
    """The cheapest change, or combination of changes, with which the recipe fits; None if none is enough."""
    options = candidates(plan)
    combinations = [
        chosen
        for count in range(1, MAX_CHANGES + 1)
        for chosen in itertools.combinations(options.items(), count)
    ]
    for chosen in sorted(combinations, key=lambda each: sum(cost for _, cost in each)):
        overrides = tuple(word for words, _ in chosen for word in words.split())
        try:
            changed = build(vary(overrides), data, device.hardware)
        except TailorError:  # another key of the recipe excludes it
            continue
        if _fits(changed, device):
            return Change(overrides, changed.memory.peak)
    return None


def candidates(plan: Plan) -> dict[str, float]:
    """Overrides that lower the memory -> their cost: the share of the time, and 1 or more for what changes the result."""
    found: dict[str, float] = {}
    if plan.micro_batch_size > 1:
        found["train.micro_batch_size=1"] = 0.05
    if not plan.tiled_mlp:
        found["train.tiled_mlp=true"] = 0.06
    if plan.activation_checkpointing != 1:
        found["train.activation_checkpointing=true"] = 0.3
    if plan.gpu and not plan.activation_offloading:
        found["train.activation_offloading=true"] = 0.35
    if plan.reference == "copy":
        found["method.reference=precomputed"] = 0.1
    if plan.workers > 1 and not plan.strategy.shards_optimizer:
        found["scale.strategy=fsdp"] = 0.2
    if plan.gpu and plan.optim.optimizer == "adamw":
        found["optim.optimizer=adamw_8bit"] = 0.15
    if plan.gpu and plan.model.adapter is not None and plan.quantization is None:
        found["model.quantize.type=nf4"] = 1.0
    if plan.model.adapter is None and plan.model.beacon is None:
        found["model.adapter.rank=16"] = 2.0
    return found


def replaced(overrides: Sequence[str], further: Sequence[str]) -> list[str]:
    """Overrides with further ones, which replace those of the same key."""
    keys = {word.partition("=")[0] for word in further}
    return [*(word for word in overrides if word.partition("=")[0] not in keys), *further]


def _fits(plan: Plan | None, device: Device) -> bool:
    return plan is not None and plan.memory.peak <= USABLE_MEMORY * device.hardware.memory_bytes


def _of_rows(recipe: Recipe, data: DataFacts, rows: int, device: Device, build: Build) -> Plan | None:
    """The plan with micro-batches of `rows` rows, as if the data had that many. None if there can be none."""
    wider = dataclasses.replace(
        data, max_rows=rows, rows_per_batch=max(data.rows_per_batch, rows * recipe.scale.max_workers)
    )
    return _built(_with_micro_batch(recipe, rows), wider, device, build)


def _of_length(recipe: Recipe, data: DataFacts, length: int, device: Device, build: Build) -> Plan | None:
    """The plan with one row of `length` tokens in a micro-batch."""
    embeds = recipe.method.embedding is not None
    longer = dataclasses.replace(
        data, max_rows=1, longest=length, longest_row=length, longest_text=length if embeds else 0
    )
    return _built(_with_micro_batch(recipe, 1), longer, device, build)


def _built(recipe: Recipe, data: DataFacts, device: Device, build: Build) -> Plan | None:
    try:
        return build(recipe, data, device.hardware)
    except TailorError:
        return None


def _with_micro_batch(recipe: Recipe, rows: int) -> Recipe:
    train = recipe.train.model_copy(update={"micro_batch_size": rows})
    return recipe.model_copy(update={"train": train})


def _largest(fits: Callable[[int], bool], limit: int, first: int = 1) -> int:
    """The largest number from `first` to `limit` that fits, 0 if `first` does not. `fits` is monotone."""
    if first > limit or not fits(first):
        return 0
    low, high = first, 2 * first  # `low` fits
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
