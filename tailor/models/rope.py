"""`model.rope`: set in the config before the model is loaded, and checked on the loaded model.

transformers reads the RoPE parameters when it builds a model. A later change has no effect, and missing parameters are
silently replaced by defaults. Therefore `write` sets the complete parameters, and `prove` compares the frequencies of the
loaded modules with closed forms that are implemented here independently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailor.encode.gguf import readable
from tailor.errors import ModelError
from tailor.models import own_code
from tailor.models.decoder import decoder_of
from tailor.plan import rope as plan
from tailor.spec.model import Model
from tailor.spec.rope import Rope

TOLERANCE = 1e-6
"""Maximum relative difference of a frequency or of the attention factor that counts as rounding (3e-7 measured)."""


def write(config: Any, rope: Rope, path: str) -> None:
    """Set `rope` in a transformers config. path: of the base, for messages. ModelError if the model does not support it."""
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
    text.rope_parameters = entries["rope_parameters"]
    text.max_position_embeddings = entries["max_position_embeddings"]
    if hasattr(text, "original_max_position_embeddings") and rope.name != "theta":
        text.original_max_position_embeddings = (
            rope.original_length
        )  # Phi-3's config has it at this level too, which takes precedence


def save_config(folder: Path, spec: Model) -> None:
    """Write the base's config.json with `model.rope` into `folder`, so that plain transformers can load the base for an
    adapter."""
    from transformers import AutoConfig

    assert spec.rope is not None
    config = AutoConfig.from_pretrained(
        readable(spec.path), revision=spec.revision, trust_remote_code=own_code.granted(spec)
    )
    write(config, spec.rope, spec.path)
    config.save_pretrained(folder)


def prove(network: Any, rope: Rope) -> None:
    """Compare every RoPE module of a model with the closed form, at one token and at the full length. ModelError."""
    text = network.config.get_text_config()
    modules = _rotary(network)
    if not modules:
        raise ModelError(
            f"model.rope: {type(network).__name__} has no RoPE module whose frequencies could be checked",
            hint="remove model.rope",
        )
    full_length = plan.length(rope)
    for name, module in modules.items():
        for tokens in (1, full_length):
            found = _live(module, tokens)
            expected = closed_form(
                text.rope_parameters, _width(text, text.rope_parameters), tokens, text.max_position_embeddings
            )
            off = difference(found, expected)
            if not off <= TOLERANCE:
                raise ModelError(
                    f"model.rope: the frequencies of {name} in {type(network).__name__} differ from {rope.name} at "
                    f"{tokens} tokens (relative difference {off:.1e})",
                    hint="remove model.rope, or install the transformers that constraints.txt names",
                )
        _live(
            module, 1
        )  # transformers' LongRoPE module keeps the factors of the last length until the next call


def follows_length(network: Any) -> bool:
    """Whether RoPE frequencies depend on the longest sequence of a forward pass (dynamic NTK, LongRoPE)."""
    return any(
        getattr(module, "rope_type", "") in ("dynamic", "longrope") for module in _rotary(network).values()
    )


def forget(network: Any) -> None:
    """Make dynamic NTK frequencies depend on the current sequence alone.

    transformers keeps those of the longest sequence so far, so that a result would depend on earlier calls.
    """
    for module in _rotary(network).values():
        if module.rope_type == "dynamic":
            module.register_forward_pre_hook(_forget)


def closed_form(
    parameters: Mapping[str, Any], width: int, tokens: int, positions: int
) -> tuple[np.ndarray, float]:
    """(frequencies, float64[width / 2] in radians per token; attention factor) for a sequence of `tokens` tokens.

    parameters: complete `rope_parameters` of a config; width: rotated numbers of a head; positions: the config's
    `max_position_embeddings`.
    """
    kind, theta = parameters["rope_type"], float(parameters["rope_theta"])
    power = np.arange(0, width, 2, dtype=np.float64) / width  # [width / 2]
    plain = theta**-power  # [width / 2]
    factor = float(parameters.get("factor") or 1.0)
    original = parameters.get("original_max_position_embeddings")
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        grown = factor * max(tokens, positions) / positions - (factor - 1)
        return (theta * grown ** (width / (width - 2))) ** -power, 1.0
    if kind == "yarn":
        kept = 1 - _ramp(width, theta, original, parameters)  # share of the unscaled frequency, [width / 2]
        return plain * kept + plain / factor * (1 - kept), float(parameters["attention_factor"])
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = original * plain / (2 * math.pi)  # full turns within the original length, [width / 2]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return plain * kept + plain / factor * (1 - kept), 1.0
    if kind == "longrope":
        chosen = "long_factor" if tokens > original else "short_factor"
        return plain / np.asarray(parameters[chosen], np.float64), float(parameters["attention_factor"])
    assert kind == "default"
    return plain, 1.0


def difference(found: tuple[np.ndarray, float], expected: tuple[np.ndarray, float]) -> float:
    """Largest relative difference of a frequency or of the attention factor; infinite if the shapes differ."""
    if found[0].shape != expected[0].shape:
        return math.inf
    return max(float(np.abs(found[0] / expected[0] - 1).max()), abs(found[1] / expected[1] - 1))


def _ramp(width: int, theta: float, original: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """YaRN's interpolation weight of each frequency, float64[width / 2]: 0 for high frequencies, 1 for low ones."""

    def index_of(turns: float) -> float:
        """Index (not rounded) of the frequency that makes `turns` full turns within the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(index_of(parameters["beta_fast"])), 0)
    last = min(math.ceil(index_of(parameters["beta_slow"])), width - 1)
    return np.clip((np.arange(width // 2) - first) / max(last - first, 0.001), 0, 1)


def _rotary(network: Any) -> dict[str, Any]:
    """The decoder's RoPE modules by name."""
    return {
        name: module
        for name, module in decoder_of(network).named_modules()
        if hasattr(module, "inv_freq") and hasattr(module, "attention_scaling")
    }


def _live(module: Any, tokens: int) -> tuple[np.ndarray, float]:
    """(frequencies, attention factor) that a RoPE module uses for a sequence of `tokens` tokens."""
    device = module.inv_freq.device
    module(torch.zeros(1, device=device), torch.tensor([[tokens - 1]], device=device))
    return module.inv_freq.double().cpu().numpy(), float(module.attention_scaling)


def _width(text: Any, parameters: Mapping[str, Any]) -> int:
    """Size of the rotated part of a head."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(head * float(parameters.get("partial_rotary_factor") or 1.0))


def _forget(module: Any, arguments: Any) -> None:
    # A clone: as one shared tensor, the two buffers would be filled once when a sharded model is loaded.
    module.inv_freq = module.original_inv_freq.clone()
    module.max_seq_len_cached = module.original_max_seq_len
