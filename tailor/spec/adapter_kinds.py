"""The kinds of `model.adapter.type`: everything that the other parts know about one of them.

A new kind is an entry here, a name in `Adapter.type`, a row in the docs, and a case in tests/train/test_adapter_kinds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

FEED_FORWARD = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "c_proj")
"""(IA)³ scales the inputs of modules of these names, and the outputs of others."""
KEYS_AND_VALUES = ("k_proj", "v_proj", "query_key_value")


class Sizes(Protocol):
    """The keys of `model.adapter` that decide the number of weights."""

    @property
    def rank(self) -> int: ...
    @property
    def oft_block_size(self) -> int: ...
    @property
    def dora(self) -> bool: ...
    @property
    def target_modules(self) -> str | list[str]: ...
    def rank_of(self, module: str) -> int:
        """The rank for the module of this full name."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of adapter in PEFT."""

    label: str
    """Its name for the user."""
    peft_type: str
    """The same in PEFT's adapter_config.json."""
    keys: Mapping[str, str]
    """Keys of `model.adapter` that apply, besides those of every kind -> PEFT's settings."""
    weights: Callable[[Sizes, str, int, int], int]
    """Number of trained weights on a linear module, given its full name, inputs and outputs."""
    tensors: str
    """A regular expression for the part of a saved tensor's name that follows its module's."""
    settings: Mapping[str, Any]
    """PEFT's settings that no key changes."""
    quantized: bool = True
    """Whether the base may be quantized."""
    scales_bias: bool = False
    """Whether a merge changes a module's bias too."""


def _lora(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    return spec.rank_of(module) * (inputs + outputs) + (outputs if spec.dora else 0)


def _loha(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    return 2 * spec.rank_of(module) * (inputs + outputs)


def _lokr(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    rank, (a, b), (c, d) = spec.rank_of(module), _near_square(outputs), _near_square(inputs)
    return a * c + (b * d if rank >= max(b, d) / 2 else rank * (b + d))


def _near_square(size: int) -> tuple[int, int]:
    """The two factors of `size` that are closest to each other, the smaller one first."""
    small = next(factor for factor in range(math.isqrt(size), 0, -1) if size % factor == 0)
    return small, size // small


def _oft(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    return inputs * (spec.oft_block_size - 1) // 2


def _ia3(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    name = module.rsplit(".", 1)[-1]
    if spec.target_modules == "all-linear" and name not in (*KEYS_AND_VALUES, *FEED_FORWARD):
        return 0
    return inputs if name in FEED_FORWARD else outputs


def _vera(spec: Sizes, module: str, inputs: int, outputs: int) -> int:
    return spec.rank + outputs


_RANKS = {"rank": "r", "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern"}

KINDS: dict[str, Kind] = {
    "lora": Kind(
        "LoRA",
        "LORA",
        {
            **_RANKS,
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "dora": "use_dora",
            "rslora": "use_rslora",
        },
        _lora,
        "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector",
        {},
    ),
    "loha": Kind("LoHa", "LOHA", {**_RANKS, "alpha": "alpha"}, _loha, "hada_w[12]_[ab]", {}, quantized=False),
    "lokr": Kind(
        "LoKr", "LOKR", {**_RANKS, "alpha": "alpha"}, _lokr, "lokr_w[12](_[ab])?", {}, quantized=False
    ),
    "oft": Kind("OFT", "OFT", {"oft_block_size": "oft_block_size"}, _oft, "oft_R", {}),
    "ia3": Kind("(IA)³", "IA3", {}, _ia3, "ia3_l", {}, scales_bias=True),
    "vera": Kind(
        "VeRA",
        "VERA",
        {"rank": "r", "dropout": "vera_dropout"},
        _vera,
        "vera_lambda_[bd]",
        {"save_projection": True, "projection_prng_key": 0},
    ),
}
BY_PEFT_TYPE = {kind.peft_type: kind for kind in KINDS.values()}
OF_SOME = sorted({"init", *(key for kind in KINDS.values() for key in kind.keys)})
"""Keys of `model.adapter` that do not apply to every kind."""


def known(peft_type: object) -> Kind | None:
    """The kind of an adapter with this `peft_type` in its configuration; None for others."""
    return BY_PEFT_TYPE.get(str(peft_type))
