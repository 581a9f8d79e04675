"""`model.rope` beside the base's config.json: the complete parameters, and the lengths that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.spec.rope import Rope, ThetaRope

Config = Mapping[str, Any]
WITHOUT = frozenset(("bloom", "falcon_mamba", "gpt2", "gpt_neo", "jamba", "mamba", "mamba2", "mpt", "opt"))
"""Types of models whose positions are not rotary."""
FOLLOWING = ("dynamic", "longrope", "su")
"""Kinds whose frequencies depend on a sequence's length (`su` is an older name of longrope)."""
NESTED = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers by which some configs give parameters of their own."""


def length(rope: Rope) -> int:
    """Tokens that a model with `rope` is for."""
    if rope.length is not None:
        return rope.length
    assert rope.name in ("linear", "dynamic", "yarn")
    return round(rope.factor * rope.original_length)


def positions(config: Config) -> int | None:
    """Tokens that a model of this config.json is for, where it says so.

    Dynamic scaling keeps the original length in `max_position_embeddings`: its formula needs it there.
    """
    limit = _first(config, "max_position_embeddings", "n_positions")
    if limit is None:
        return None
    own = parameters_of(config)
    dynamic = own.get("rope_type", own.get("type")) == "dynamic"
    return round(int(limit) * float(own.get("factor") or 1)) if dynamic else int(limit)


def original_length(config: Config) -> int | None:
    """Tokens that a model of this config.json was made for before any scaling, where it says so."""
    own = parameters_of(config)
    given = own.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    limit = _first(config, "max_position_embeddings", "n_positions")
    if given or limit is None:
        return int(given) if given else None
    linear = own.get("rope_type", own.get("type")) == "linear"
    return round(int(limit) / float(own.get("factor") or 1)) if linear else int(limit)


def parameters_of(config: Config) -> Config:
    """The rotary parameters in a config.json, under the name that it uses; empty where it has none."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def check(rope: Rope, config: Config, path: str) -> None:
    """ModelError when `rope` does not fit the base at `path` with this config.json."""
    if config.get("model_type") in WITHOUT:
        raise ModelError(
            f"model.rope: {path} ({config['model_type']}) has no rotary positions",
            hint="leave model.rope out",
        )
    if any(kind in parameters_of(config) for kind in NESTED):
        raise ModelError(
            f"model.rope: the layers of {path} have rotary positions of several kinds, which one setting cannot describe",
            hint="leave model.rope out",
        )
    if isinstance(rope, ThetaRope):
        return
    made_for = original_length(config)
    if made_for is not None and made_for != rope.original_length:
        raise ModelError(
            f"model.rope.original_length is {rope.original_length}, but {path} was made for {made_for} tokens "
            "before any scaling",
            hint=f"set model.rope.original_length: {made_for}",
        )


def check_batches(config: Config, longest: int, wanted: list[str], path: str) -> None:
    """ModelError where examples of a forward pass would change each other's frequencies.

    longest: tokens of the longest example. wanted: settings that part the examples and that the recipe does not have.
    """
    config = {**config, **(config.get("text_config") or {})}
    own = parameters_of(config)
    kind, made_for = own.get("rope_type", own.get("type")), original_length(config)
    if kind in FOLLOWING and made_for is not None and longest > made_for and wanted:
        raise ModelError(
            f"{path} ({kind} rotary positions) takes its frequencies from the longest document of a forward pass once "
            f"that is over {made_for} tokens, and the longest example has {longest}: examples would change each other",
            hint=f"set {' and '.join(wanted)}, or data.max_length: {made_for} or less",
        )


def extended(config: Config, rope: Rope | None, path: str) -> Config:
    """A config.json of the base at `path` with the lengths of `rope`. ModelError where they do not fit."""
    text = config.get("text_config") or {}
    if rope is None:
        return config
    check(rope, {**config, **text}, path)
    return {**config, "text_config": {**text, **written(rope, 10000.0)}}


def written(rope: Rope, theta: float, partial: float | None = None) -> dict[str, Any]:
    """The complete entries of a config for `rope`. theta: the model's own base, where the recipe gives none.

    partial: the share of a head's width that is rotated, where the model has one.
    """
    own: dict[str, Any] = {"rope_type": rope.name, "rope_theta": rope.theta or theta}
    whole = length(rope)
    if isinstance(rope, ThetaRope):
        own["rope_type"] = "default"
    else:
        own["factor"] = whole / rope.original_length if rope.name == "longrope" else rope.factor
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
    kept = rope.original_length if rope.name == "dynamic" else whole
    return {"rope_parameters": own, "max_position_embeddings": kept}


def _first(config: Config, *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
