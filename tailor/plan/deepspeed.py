"""DeepSpeed's settings: the recipe's facts, in the user's own JSON where there is one."""

from __future__ import annotations

from typing import Any

from tailor.plan.facts import ModelFacts
from tailor.plan.memory import trained_parameters
from tailor.spec.recipe import Recipe
from tailor.spec.rules.deepspeed import AUTO, PASSED_ON, read
from tailor.spec.strategy import DeepSpeed, Strategy

MIN_BUCKET = 2**23
"""Elements, 32 MiB of float32: about what PyTorch's data parallelism reduces at once."""
MAX_AHEAD = 50_000_000
"""Elements that ZeRO 3 fetches ahead by its default."""


def settings(
    strategy: Strategy, recipe: Recipe, facts: ModelFacts, *, precision: str, micro: int
) -> dict[str, Any] | None:
    """What `deepspeed.initialize` is given: the user's JSON with the recipe's facts in it. None for other strategies.

    Steps accumulate as the loop says, so DeepSpeed itself is told of no accumulation.
    """
    if not isinstance(strategy, DeepSpeed):
        return None
    json: dict[str, Any] = read(strategy.config).values if strategy.config else {}
    passed: dict[str, Any] = {key: value for key, value in json.items() if key in PASSED_ON}
    given = passed.pop("zero_optimization", None) or {}
    # What the recipe says stands below, and DeepSpeed knows what else may be `auto`.
    zero: dict[str, Any] = {key: value for key, value in given.items() if value != AUTO}
    zero |= {"stage": strategy.stage, **zero_sizes(strategy, recipe, facts)}
    for key, device in (
        ("offload_optimizer", strategy.offload_optimizer),
        ("offload_param", strategy.offload_parameters),
    ):
        own = zero.pop(key, None) or {}
        if device is not None:
            zero[key] = {**own, "device": device}
            if device == "nvme":
                zero[key]["nvme_path"] = strategy.nvme_path
    # In stage 1, DeepSpeed's own bf16 would hold as much, and round the weights besides.
    bf16 = precision == "bf16" and strategy.stage > 1
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    settings: dict[str, Any] = {
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **{key: value for key, value in passed.items() if value != AUTO},
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optim.max_grad_norm or 0.0,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return settings | ({"torch_autocast": autocast} if precision == "bf16" and not bf16 else {})


def zero_sizes(strategy: Strategy | str, recipe: Recipe, facts: ModelFacts) -> dict[str, int]:
    """How many elements DeepSpeed reduces, gathers, fetches ahead and keeps at once: as the user's JSON says, else by the
    model's size, because a buffer of DeepSpeed's default of 500 million is made whole for the smallest model too. Empty for other
    strategies.
    """
    if not isinstance(strategy, DeepSpeed):
        return {}
    json: dict[str, Any] = read(strategy.config).values if strategy.config else {}
    given = json.get("zero_optimization") or {}
    trained = trained_parameters(facts, recipe.model)
    bucket = min(max(facts.hidden**2, MIN_BUCKET), trained + trained % 2)
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if strategy.stage == 3:
        layer = facts.linear_parameters // facts.layers
        sizes |= {
            "stage3_prefetch_bucket_size": min(layer, MAX_AHEAD),
            "stage3_param_persistence_threshold": 10 * facts.hidden,
            # A weight that is used again only after more than a layer is let go, as FSDP does.
            "stage3_max_reuse_distance": layer,
            "stage3_max_live_parameters": 2 * layer + facts.embedding_parameters,
        }
    return {key: size if given.get(key, AUTO) == AUTO else int(given[key]) for key, size in sizes.items()}
