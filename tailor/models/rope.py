"""`model.rope`: written into the config before a model is loaded, and proven on the loaded one.

transformers takes the parameters when it builds a model; a change afterwards has no effect, and an incomplete set is
silently another one. So the whole set is written, and the frequencies of the live modules are compared with the
closed forms, which are computed here on their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailor.errors import ModelError
from tailor.plan import rope as plan
from tailor.spec.model import Model
from tailor.spec.rope import Rope

TOLERANCE = 1e-6
"""Largest relative difference of a frequency or the attention factor that rounding explains (3e-7 measured)."""


def write(config: Any, rope: Rope, path: str) -> None:
    """Put `rope` into a transformers config. `path`: of the base, for messages. ModelError where it cannot be."""
    text = config.get_text_config()
    own = getattr(text, "rope_parameters", None)
    if not isinstance(own, dict):
        raise ModelError(
            f"model.rope: {path} ({text.model_type}) has no rotary position embeddings",
            hint="remove model.rope",
        )
    plan.check(rope, text.to_dict(), path)
    entries = plan.written(
        rope, own.get("rope_theta") or text.default_theta, own.get("partial_rotary_factor")
    )
    if rope.name == "longrope":
        is_positive = _width(text, entries["rope_parameters"]) // 2
        for key in ("short_factor", "long_factor"):
            if len(getattr(rope, key)) != is_positive:
                raise ModelError(
                    f"model.rope.{key} has {len(getattr(rope, key))} numbers, and {path} has {is_positive} frequencies",
                    hint=f"give {is_positive} numbers",
                )
    text.rope_parameters = entries["rope_parameters"]
    text.max_position_embeddings = entries["max_position_embeddings"]
    if hasattr(text, "original_max_position_embeddings") and rope.name != "theta":
        text.original_max_position_embeddings = rope.original_length  # Phi 3's own place, which goes first


def save_config(folder: Path, spec: Model) -> None:
    """Write the base's config.json with its rope into `folder`: what plain transformers needs beside an adapter."""
    from transformers import AutoConfig

    assert spec.rope is not None
    config = AutoConfig.from_pretrained(
        spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )
    write(config, spec.rope, spec.path)
    config.save_pretrained(folder)


def prove(network: Any, rope: Rope) -> None:
    """Compare every rotary module with the closed form, at one token and at the full length. ModelError."""
    text = network.config.get_text_config()
    modules = _rotary(network)
    if not modules:
        raise ModelError(
            f"model.rope: the rotary positions of {type(network).__name__} are held in no module that could be proven",
            hint="leave model.rope out",
        )
    whole = plan.length(rope)
    for name, module in modules.items():
        for tokens in (1, whole):
            found = _live(module, tokens)
            is_positive = closed_form(
                text.rope_parameters, _width(text, text.rope_parameters), tokens, text.max_position_embeddings
            )
            off = difference(found, is_positive)
            if not off <= TOLERANCE:
                raise ModelError(
                    f"model.rope: {name} of {type(network).__name__} has other frequencies than {rope.name} gives "
                    f"at {tokens} tokens (by {off:.1e} of their size)",
                    hint="leave model.rope out, or install the transformers that constraints.txt names",
                )
        _live(module, 1)  # LongRoPE's module keeps what it saw last, until the next pass


def follows_length(network: Any) -> bool:
    """Whether a sequence's frequencies depend on the longest one of its forward pass."""
    return any(
        getattr(module, "rope_type", "") in ("dynamic", "longrope") for module in _rotary(network).values()
    )


def forget(network: Any) -> None:
    """Dynamic frequencies follow each sequence alone: transformers keeps those of the longest one that it has met."""
    for module in _rotary(network).values():
        if module.rope_type == "dynamic":
            module.register_forward_pre_hook(_forget)


def closed_form(
    parameters: Mapping[str, Any], width: int, tokens: int, positions: int
) -> tuple[np.ndarray, float]:
    """Frequencies, float64[width / 2] in radians per token, and the attention factor for a sequence of `tokens`.

    parameters: a config's complete `rope_parameters`; width: rotated part of a head; positions: its
    `max_position_embeddings`.
    """
    kind, theta = parameters["rope_type"], float(parameters["rope_theta"])
    power = np.arange(0, width, 2, dtype=np.float64) / width
    plain = theta**-power
    factor = float(parameters.get("factor") or 1.0)
    made_for = parameters.get("original_max_position_embeddings")
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        grown = factor * max(tokens, positions) / positions - (factor - 1)
        return (theta * grown ** (width / (width - 2))) ** -power, 1.0
    if kind == "yarn":
        kept = 1 - _ramp(width, theta, made_for, parameters)
        return plain * kept + plain / factor * (1 - kept), float(parameters["attention_factor"])
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = made_for * plain / (2 * math.pi)  # within the original length
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return plain * kept + plain / factor * (1 - kept), 1.0
    if kind == "longrope":
        chosen = "long_factor" if tokens > made_for else "short_factor"
        return plain / np.asarray(parameters[chosen], np.float64), float(parameters["attention_factor"])
    assert kind == "default"
    return plain, 1.0


def difference(found: tuple[np.ndarray, float], is_positive: tuple[np.ndarray, float]) -> float:
    """Largest relative difference of a frequency or of the attention factor; infinite for other shapes."""
    if found[0].shape != is_positive[0].shape:
        return math.inf
    return max(float(np.abs(found[0] / is_positive[0] - 1).max()), abs(found[1] / is_positive[1] - 1))


def _ramp(width: int, theta: float, made_for: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """YaRN's share of interpolation for each frequency, from 0 for fast ones to 1 for slow ones."""

    def place(turns: float) -> float:
        """Which frequency (not rounded) turns so often within the original length."""
        return width * math.log(made_for / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(place(parameters["beta_fast"])), 0)
    last = min(math.ceil(place(parameters["beta_slow"])), width - 1)
    return np.clip((np.arange(width // 2) - first) / max(last - first, 0.001), 0, 1)


def _rotary(network: Any) -> dict[str, Any]:
    """The decoder's rotary modules by name."""
    return {
        name: module
        for name, module in network.get_decoder().named_modules()
        if hasattr(module, "inv_freq") and hasattr(module, "attention_scaling")
    }


def _live(module: Any, tokens: int) -> tuple[np.ndarray, float]:
    """Frequencies and attention factor that a module uses for a sequence of `tokens`."""
    device = module.inv_freq.device
    module(torch.zeros(1, device=device), torch.tensor([[tokens - 1]], device=device))
    return module.inv_freq.double().cpu().numpy(), float(module.attention_scaling)


def _width(text: Any, parameters: Mapping[str, Any]) -> int:
    """Numbers of a head that are rotated."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(head * float(parameters.get("partial_rotary_factor") or 1.0))


def _forget(module: Any, arguments: Any) -> None:
    module.inv_freq = (
        module.original_inv_freq.clone()
    )  # two buffers: one would be lost where weights are handed out
    module.max_seq_len_cached = module.original_max_seq_len
