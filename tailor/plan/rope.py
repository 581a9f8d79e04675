"""RoPE scaling: combine `model.rope` with the base model's config.json, and derive the supported lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.plan import encoders
from tailor.spec.rope import LongRope, Rope, ThetaRope

Config = Mapping[str, Any]
WITHOUT = frozenset(("bloom", "falcon_mamba", "gpt2", "gpt_neo", "jamba", "mamba", "mamba2", "mpt", "opt"))
"""Model types without rotary position embeddings (RoPE)."""
FOLLOWING = ("dynamic", "longrope", "su")
"""RoPE types whose frequencies depend on the sequence length (`su` is an older name of longrope)."""
NESTED = ("full_attention", "sliding_attention", "chunked_attention")
"""Layer types for which some configs have separate RoPE parameters."""


def length(rope: Rope) -> int:
    """Maximum length, in tokens, of a model with this `model.rope`."""
    if rope.length is not None:
        return rope.length
    assert rope.name in ("linear", "dynamic", "yarn")
    return round(rope.factor * rope.original_length)


def positions(config: Config) -> int | None:
    """Maximum length, in tokens, of a model with this config.json; None if the config does not say.

    With dynamic scaling, `max_position_embeddings` is the original length, because the formula of transformers reads it.
    """
    limit = _first(config, "max_position_embeddings", "n_positions")
    if limit is None:
        return None
    limit = int(limit) - encoders.first_position(config)
    own = parameters_of(config)
    dynamic = own.get("rope_type", own.get("type")) == "dynamic"
    return round(int(limit) * float(own.get("factor") or 1)) if dynamic else int(limit)


def original_length(config: Config) -> int | None:
    """Maximum length, in tokens, before RoPE scaling; None if the config does not say."""
    own = parameters_of(config)
    given = own.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    limit = _first(config, "max_position_embeddings", "n_positions")
    if given or limit is None:
        return int(given) if given else None
    linear = own.get("rope_type", own.get("type")) == "linear"
    return round(int(limit) / float(own.get("factor") or 1)) if linear else int(limit)


def parameters_of(config: Config) -> Config:
    """The RoPE parameters in a config.json, under either of their two names; empty if it has none."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def frequencies(config: Config) -> int | None:
    """Number of RoPE frequencies of a head: half of its rotated part. None if the config does not say its size."""
    hidden, heads = _first(config, "hidden_size", "n_embd"), _first(config, "num_attention_heads", "n_head")
    # Multi-head latent attention rotates a part of its own size.
    size = _first(config, "qk_rope_head_dim", "head_dim") or (hidden // heads if hidden and heads else None)
    if size is None:
        return None
    partial = parameters_of(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(size * float(partial)) // 2


def check(rope: Rope, config: Config, path: str) -> None:
    """Raise ModelError if `rope` does not fit the base model at `path` with this config.json."""
    if config.get("model_type") in WITHOUT:
        raise ModelError(
            f"model.rope: {path} ({config['model_type']}) has no rotary position embeddings",
            hint="remove model.rope",
        )
    if any(kind in parameters_of(config) for kind in NESTED):
        raise ModelError(
            f"model.rope: {path} has different RoPE parameters for its layer types, which one setting cannot replace",
            hint="remove model.rope",
        )
    if isinstance(rope, ThetaRope):
        return
    if isinstance(rope, LongRope) and (expected := frequencies(config)) is not None:
        for key, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
            if len(factors) != expected:
                raise ModelError(
                    f"model.rope.{key} has {len(factors)} numbers, but {path} has {expected} RoPE frequencies",
                    hint=f"set model.rope.{key} to {expected} numbers",
                )
    original = original_length(config)
    if original is not None and original != rope.original_length:
        raise ModelError(
            f"model.rope.original_length is {rope.original_length}, but the original maximum length of {path} is {original} "
            "tokens",
            hint=f"set model.rope.original_length: {original}",
        )


def check_batches(config: Config, longest: int, missing: list[str], path: str) -> None:
    """Raise ModelError if an example's RoPE frequencies would depend on other examples in the same forward pass.

    longest: tokens of the longest example. missing: the settings that the recipe lacks for one forward pass per example.
    """
    config = {**config, **(config.get("text_config") or {})}
    own = parameters_of(config)
    kind, original = own.get("rope_type", own.get("type")), original_length(config)
    if kind in FOLLOWING and original is not None and longest > original and missing:
        raise ModelError(
            f"{path} has RoPE type {kind}: above {original} tokens, its frequencies depend on the longest document of a "
            f"forward pass. The longest example has {longest} tokens, so it would change the results of other examples",
            hint=f"set {' and '.join(missing)}, or data.max_length: {original} or less",
        )


def extended(config: Config, rope: Rope | None, path: str) -> Config:
    """The config.json of the base model at `path`, with `rope` applied. Raises ModelError if they do not fit."""
    text = config.get("text_config") or {}
    if rope is None:
        return config
    check(rope, {**config, **text}, path)
    return {**config, "text_config": {**text, **written(rope, 10000.0)}}


def written(rope: Rope, theta: float, partial: float | None = None) -> dict[str, Any]:
    """The config.json entries for `rope`. theta: the model's own RoPE base, used if the recipe sets none.

    partial: the fraction of a head that is rotated (partial_rotary_factor), if the model has one. The default attention
    factors are those of transformers: YaRN (arXiv 2309.00071) and LongRoPE (arXiv 2402.13753).
    """
    own: dict[str, Any] = {"rope_type": rope.name, "rope_theta": rope.theta or theta}
    new_length = length(rope)
    if isinstance(rope, ThetaRope):
        own["rope_type"] = "default"
    else:
        own["factor"] = new_length / rope.original_length if rope.name == "longrope" else rope.factor
    if rope.name in ("yarn", "llama3", "longrope"):
        own["original_max_position_embeddings"] = rope.original_length
    if rope.name == "yarn":
        own |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        own["attention_factor"] = rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    elif rope.name == "llama3":
        own |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    elif rope.name == "longrope":
        own |= {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
        grown = 1 + math.log(max(1.0, own["factor"])) / math.log(rope.original_length)
        own["attention_factor"] = rope.attention_factor or math.sqrt(grown)
    if partial is not None:
        own["partial_rotary_factor"] = partial
    kept = rope.original_length if rope.name == "dynamic" else new_length
    return {"rope_parameters": own, "max_position_embeddings": kept}


def _first(config: Config, *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
