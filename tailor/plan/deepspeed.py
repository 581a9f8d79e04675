"""The DeepSpeed config: the recipe's values, merged into the user's own JSON if there is one."""

from __future__ import annotations

from typing import Any

from tailor.plan.facts import ModelFacts
from tailor.plan.memory import trained_parameters
from tailor.spec.recipe import Recipe
from tailor.spec.rules.deepspeed import AUTO, PASSED_ON, read
from tailor.spec.strategy import DeepSpeed, Strategy

MIN_BUCKET = 2**23
"""Elements: 32 MiB of float32, similar to the 25 MiB buckets of PyTorch's DistributedDataParallel."""
MAX_AHEAD = 50_000_000
"""Elements: DeepSpeed's default of stage3_prefetch_bucket_size."""


def settings(
    strategy: Strategy, recipe: Recipe, facts: ModelFacts, *, precision: str, micro: int
) -> dict[str, Any] | None:
    """The config for `deepspeed.initialize`. None for other strategies.

    The training loop accumulates gradients itself, so DeepSpeed's gradient_accumulation_steps is 1.
    """
    if not isinstance(strategy, DeepSpeed):
        return None
    json: dict[str, Any] = read(strategy.config).values if strategy.config else {}
    user_settings: dict[str, Any] = {key: value for key, value in json.items() if key in PASSED_ON}
    user_zero = user_settings.pop("zero_optimization", None) or {}
    # The recipe's values follow below. Other `auto` values are dropped, so that DeepSpeed uses its own defaults.
    zero: dict[str, Any] = {key: value for key, value in user_zero.items() if value != AUTO}
    zero |= {"stage": strategy.stage, **zero_sizes(strategy, recipe, facts)}
    for key, device in (
        ("offload_optimizer", strategy.offload_optimizer),
        ("offload_param", strategy.offload_parameters),
    ):
        user_offload = zero.pop(key, None) or {}
        if device is not None:
            zero[key] = {**user_offload, "device": device}
            if device == "nvme":
                zero[key]["nvme_path"] = strategy.nvme_path
    # In stage 1, DeepSpeed's bf16 mode would save no memory, and would round the weights to bf16. Autocast does not.
    bf16 = precision == "bf16" and strategy.stage > 1
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    settings: dict[str, Any] = {
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **{key: value for key, value in user_settings.items() if value != AUTO},
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optim.max_grad_norm or 0.0,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return settings | ({"torch_autocast": autocast} if precision == "bf16" and not bf16 else {})


def zero_sizes(strategy: Strategy | str, recipe: Recipe, facts: ModelFacts) -> dict[str, int]:
    """DeepSpeed's buffer sizes, in elements: from the user's JSON, otherwise from the size of the model.

    DeepSpeed's default is 500 million elements, which it allocates even for the smallest model. Empty for other strategies.
    """
    if not isinstance(strategy, DeepSpeed):
        return {}
    json: dict[str, Any] = read(strategy.config).values if strategy.config else {}
    user_zero = json.get("zero_optimization") or {}
    trained = trained_parameters(facts, recipe.model)
    bucket = min(max(facts.hidden**2, MIN_BUCKET), trained + trained % 2)
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if strategy.stage == 3:
        layer = facts.linear_parameters // facts.layers
        sizes |= {
            "stage3_prefetch_bucket_size": min(layer, MAX_AHEAD),
            "stage3_param_persistence_threshold": 10 * facts.hidden,
            # Release a gathered weight unless it is used again within one layer, as FSDP does.
            "stage3_max_reuse_distance": layer,
            "stage3_max_live_parameters": 2 * layer + facts.embedding_parameters,
        }
    return {
        key: size if user_zero.get(key, AUTO) == AUTO else int(user_zero[key]) for key, size in sizes.items()
    }
