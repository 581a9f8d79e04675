"""What a shipped recipe needs by the forecast: memory and time on a device, with the sizes of its public data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.plan import DataFacts, ModelFacts, Plan, build
from tailor.plan.build import USABLE_MEMORY
from tailor.plan.devices import Device, device
from tailor.plan.duration import Duration, duration
from tailor.spec.load import load_recipe
from tailor.spec.recipe import Recipe
from tests.helpers.public_configs import BASES
from tests.helpers.public_data import PUBLIC_DATA

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DEVICES = ("4090", "l40s", "a100-80", "h200")
"""From the smallest: a recipe is planned for the first one whose memory is enough."""
PACKED = 0.97
"""Share of a packed row that has tokens."""


@dataclass(frozen=True)
class Forecast:
    """A recipe on the smallest device that is enough."""

    plan: Plan
    device: Device
    duration: Duration


def config_of(recipe: Recipe) -> dict[str, Any]:
    """The config.json of the recipe's base."""
    if recipe.model.path in BASES:
        return BASES[recipe.model.path][1]
    values: dict[str, Any] = json.loads((ROOT / recipe.model.path / "config.json").read_text())
    return values


def data_of(recipe: Recipe) -> DataFacts:
    """The facts of the recipe's data, with rows as long as `data.max_length` for the memory."""
    rows = tokens = 0.0
    for source in recipe.data.train:
        public = PUBLIC_DATA.get(source.path)
        count = public.rows if public else len((ROOT / source.path).read_text().splitlines())
        count = min(count, source.limit or count)
        rows += count * source.weight
        tokens += count * source.weight * min(public.tokens if public else 200, recipe.data.max_length)
    length, train, method = recipe.data.max_length, recipe.train, recipe.method
    batch = train.batch_size or max(1, (train.batch_tokens or 0) // length) or 32
    packed = recipe.data.pack or method.joins
    per_epoch = max(1, round((tokens / (PACKED * length) if packed else rows) / batch))
    texts = 0
    if (embedding := method.embedding) is not None:
        texts = embedding.embedding_batch_size * (1 + embedding.group_size)
        batch = embedding.generative_batch_size or batch
        tokens, per_epoch = float(texts * 150 + batch * 600), 1
    steps = train.steps or math.ceil((train.epochs or 1) * per_epoch)
    if train.tokens:
        steps = math.ceil(train.tokens / (train.batch_tokens or tokens))
    return DataFacts(
        tokens_url="",
        fingerprint="",
        train_fingerprint="",
        examples=int(rows),
        evaluation_examples=10,
        tokens=int(tokens),
        supervised_tokens=int(tokens),
        longest=length,
        longest_row=length,
        rows_per_batch=batch,
        max_rows=batch,
        steps_per_epoch=per_epoch,
        steps=steps,
        run_tokens=train.tokens,
        texts_per_batch=texts,
        longest_text=length if texts else 0,
    )


def forecast(path: Path) -> Forecast:
    """The plan of a recipe whose base is public, on the smallest device that is enough."""
    recipe = load_recipe(path, check_files=False)
    config, data = config_of(recipe), data_of(recipe)
    for name in DEVICES:
        machine = device(name, recipe.scale.max_workers)
        plan = build(recipe, data, config, machine.hardware, run_url=recipe.save.to)
        if plan.memory.peak <= USABLE_MEMORY * machine.hardware.memory_bytes:
            return Forecast(plan, machine, duration(plan, ModelFacts.from_config(config), data, machine))
    raise AssertionError(f"{path.name} fits none of {', '.join(DEVICES)}")
