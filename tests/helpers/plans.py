"""Plans for tests of the loop: a tiny model, a made token store, everything else declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailor.data.facts import data_facts
from tailor.data.token_store import TokenStore
from tailor.plan import Hardware, Plan, build
from tailor.plan.outline import NOT_BUILT
from tailor.spec.recipe import Recipe

CPU = Hardware(device="cpu", memory_bytes=8 * 2**30, bf16=False)
LORA = {"rank": 4, "alpha": 8}


def make_plan(
    model_path: Path,
    tokens: TokenStore,
    run: Path,
    /,
    hardware: Hardware = CPU,
    outlined: bool = False,
    **sections: dict[str, Any],
) -> Plan:
    """A plan of the recipe `sections`, fp32, four rows a batch, one row a micro-batch. outlined: with the model's structure."""
    import json

    from tailor.train.preflight import preflight

    values: dict[str, Any] = {
        "model": {"path": str(model_path)},
        "data": {"train": [{"path": "unused"}], "max_length": 64},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-3, "schedule": "constant"},
        "train": {"precision": "fp32", "batch_size": 4, "micro_batch_size": 1, "steps": 6},
        "save": {"to": str(run)},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    recipe = Recipe.model_validate(values)
    config = json.loads((model_path / "config.json").read_text())
    outline = preflight(recipe.model, recipe.method, recipe.optim, recipe.train) if outlined else NOT_BUILT
    return build(recipe, data_facts(tokens, recipe), config, hardware, run_url=str(run), outline=outline)
