"""Settings of PEFT's LoRA configuration with which the update of a module is not s·B·A on its base's weight."""

from __future__ import annotations

from typing import Any

from tailor.errors import ModelError

_NOT_ON_THE_WEIGHT = {
    "alora_invocation_tokens": "the adapter acts only after its invocation tokens (aLoRA)",
    "layer_replication": "its base has replicated layers",
    "use_qalora": "its matrices act on grouped inputs (QA-LoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "kasa_config": "KaSA changes the base's weights",
    "arrow_config": "a router chooses among adapters (Arrow)",
}
"""Key -> why such an adapter is no update of weights, whatever its matrices are."""
_PLAIN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "modules_to_save"),
    *(
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "trainable_token_indices",
    ),
    *(
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "runtime_config",
        "megatron_config",
        "megatron_core",
    ),
    *(
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
    ),
    "velora_config",
}
"""Keys that do not change what the matrices mean, or that `LoraAdapter` reads."""


def require_update(config: dict[str, Any], url: str) -> None:
    """ModelError when the adapter at `url` is no update of its base's weights. config: PEFT's."""
    for key, reason in _NOT_ON_THE_WEIGHT.items():
        if config.get(key):
            raise ModelError(
                f"the adapter at {url} has {key}, so it cannot be merged or averaged: {reason}",
                hint="use it with PEFT, on its base",
            )


def require_plain(config: dict[str, Any], url: str) -> None:
    """ModelError when a setting of the adapter at `url` has an effect that an average would lose. config: PEFT's."""
    for key, value in config.items():
        if key not in _PLAIN and value and (key, value) != ("bias", "none"):
            raise ModelError(
                f"the adapter at {url} has {key}: {value}, which an average of adapters cannot keep",
                hint="merge each adapter with `tailor merge`, then average the models",
            )
