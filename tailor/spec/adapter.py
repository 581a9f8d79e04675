"""`model.adapter`: which weights are trained beside the frozen base model, and how they start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from tailor.spec.adapter_kinds import KINDS, Kind
from tailor.spec.base import Section

T = TypeVar("T")
Init = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"]
REPLACING = ("pissa", "olora")
"""Inits with which the first value of B·A is a part of the base's weights, and not zero."""


class Adapter(Section):
    """An adapter. Only the adapter is trained; the base model stays frozen."""

    type: Literal["lora", "loha", "lokr", "oft", "ia3", "vera"] = "lora"
    """Type of the adapter: `lora` (arXiv 2106.09685), `loha` (arXiv 2108.06098), `lokr` (arXiv 2309.14859), `oft` (arXiv
    2306.07280), `ia3` (arXiv 2205.05638) or `vera` (arXiv 2310.11454).
    """

    init: Init = "default"
    """Initial values of the matrices A and B of LoRA. `default`: A is random (Kaiming), B is zero. `gaussian`: A is normal,
    B is zero. `orthogonal`: both are random, and B·A is zero. `pissa` (arXiv 2404.02948): the largest singular values
    and vectors of each weight. `olora` (arXiv 2406.01775): its QR decomposition. `loftq` (arXiv 2310.08659): the best
    approximation of the quantization error, for `model.quantize` in 4 bits.
    """

    rank: int = Field(16, ge=1, le=65536)
    """Rank of the update matrices. A higher rank can learn more and needs more memory. Not for `oft` and `ia3`."""

    alpha: float = Field(32.0, gt=0)
    """Scaling of the update: it is multiplied by alpha / rank (by alpha / sqrt(rank) with `rslora`). For
    `lora`, `loha` and `lokr`.
    """

    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=65536)]] = {}
    """Other ranks for some modules: the end of a module's name, or a regular expression for it, and the rank. The first
    match counts.
    """

    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other values of `alpha` for some modules, as in `rank_pattern`."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapter's input. Raise it, for example to 0.05, if a small dataset overfits. For `lora`
    and `vera`.
    """

    oft_block_size: int = Field(32, ge=2, le=65536)
    """For `oft`: size of the blocks that rotate a module's inputs. It must divide their number."""

    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = "all-linear"
    """Linear modules that get an adapter: `all-linear` (all except the output head and the routers of
    mixture-of-experts models; for `ia3` keys, values and the last projection of the feed-forward blocks), or a list of
    module names such as `[q_proj, v_proj]`.
    """

    experts: bool | Literal["shared"] | None = None
    """Whether the experts of a mixture-of-experts model get an adapter: `true` the routed and the shared ones, `shared`
    only those that every token goes through, `false` none. Default: those that are linear modules. Most models store
    the routed ones in one tensor per layer, which is none. `true` is for `lora` without `dropout` and `dora`.
    """

    router: bool = False
    """Train the routers of a mixture-of-experts model in full; they are saved with the adapter."""

    modules_to_save: list[Annotated[str, Field(min_length=1)]] = []
    """Modules that are trained in full and saved with the adapter, such as `embed_tokens`. New tokens
    need less: see `model.add_tokens`.
    """

    dora: bool = False
    """With `lora`: use DoRA, weight-decomposed low-rank adaptation (arXiv 2402.09353). Slower than LoRA."""

    rslora: bool = False
    """With `lora`: use rank-stabilized scaling (rsLoRA, arXiv 2312.03732): divide by sqrt(rank) instead of rank. Useful with high
    ranks.
    """

    def weights(self, module: str, inputs: int, outputs: int) -> int:
        """Number of trained weights of the adapter on a linear module. module: its full name in the model."""
        return self.kind.weights(self, module, inputs, outputs)

    @property
    def words(self) -> str:
        """The kind and its rank, for the user: `LoRA rank 16`."""
        return f"{self.kind.label} rank {self.rank}" if "rank" in self.kind.keys else self.kind.label

    @property
    def kind(self) -> Kind:
        return KINDS[self.type]

    def rank_of(self, module: str) -> int:
        """The rank for the module of this full name."""
        return matching(self.rank_pattern, module, self.rank)


def matching(patterns: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that matches the end of a module's name, as in PEFT."""
    found = (value for pattern, value in patterns.items() if re.fullmatch(ending(pattern), module))
    return next(found, default)


def ending(pattern: str) -> str:
    """The regular expression for names that end with what `pattern` matches, from the start of a part on."""
    return rf"(.*\.)?({pattern})"
