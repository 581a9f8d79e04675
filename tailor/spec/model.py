"""`model`: the base model, how it is loaded, and what is trained of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.rope import Rope


class Quantize(Section):
    """How the frozen base weights are stored (bitsandbytes)."""

    type: Literal["nf4", "fp4", "int8"] = "nf4"
    """nf4 and fp4 store 4 bits per weight (QLoRA, arXiv 2305.14314), int8 stores 8 (LLM.int8)."""

    double: bool = True
    """Quantize the quantization constants too (saves 0.4 bit per weight; 4-bit types only)."""


class Adapter(Section):
    """A low-rank adapter (LoRA, arXiv 2106.09685), trained while the base stays frozen."""

    type: Literal["lora"] = "lora"
    """The kind of adapter."""

    rank: int = Field(16, ge=1)
    """Rank of the update matrices."""

    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with `rslora`)."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear modules get an adapter: all but the output head and a mixture's routers, or a list of module names."""

    modules_to_save: list[str] = []
    """Modules that are trained in full beside the adapter and saved with it, such as `embed_tokens`."""

    dora: bool = False
    """Weight-decomposed LoRA (arXiv 2402.09353)."""

    rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""


class Beacon(Section):
    """Activation beacons (arXiv 2401.03462): what was read is kept as a few keys per window, and the base stays frozen."""

    window: int = Field(1024, ge=8)
    """Tokens that are read at a time. After each window its tokens are forgotten, and its beacons stay in the memory."""

    ratios: list[int] = Field([2, 4, 8, 16, 32], min_length=1)
    """A beacon stands after so many tokens. 0 keeps all keys of a window. Each must divide `window`."""

    draw: Literal["step-random", "adapt", "mixed"] = "step-random"
    """How training chooses a ratio: for each window by chance, by the document's length, or a step the one, a step the other.

    `adapt` takes the finest ratio with which a document's memory stays within `memory`. Evaluation and generation
    always do so.
    """

    memory: int | None = Field(None, ge=1)
    """Keys that the memory may hold before a coarser ratio is taken. Default: `window`."""

    sink: int = Field(0, ge=0)
    """First tokens of a document whose own keys stay in the memory."""

    projections: list[Literal["q", "k", "v"]] = Field(["q", "k", "v"], min_length=1)
    """Projections of each layer for which beacons have weights of their own."""

    rank: int | None = Field(None, ge=1)
    """Rank of a low-rank update in place of whole copies of the projections. A quantized base needs one."""


class Model(Section):
    """The base model and what is trained of it."""

    path: str = Field(min_length=1)
    """A local folder in Hugging Face layout, or a model id of the Hugging Face hub."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    init: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the architecture of `config.json` with new weights, for training from scratch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How frozen weights are held. `auto` follows `train.precision`. Trained weights are always held in float32."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel. `auto` costs as much as the documents' lengths, not the pack's, and needs no extra package."""

    quantize: Quantize | None = None
    """Store the frozen base in 4 or 8 bits. Needs an adapter."""

    rope: Rope | None = None
    """Make the rotary positions for other lengths than the base's. Written completely into the saved configuration.

    Refused where the factor and the lengths disagree, or the original length is not the base's.
    """

    adapter: Adapter | None = None
    """Train a low-rank adapter. Without one, every weight is trained."""

    beacon: Beacon | None = None
    """Train activation beacons: a memory of what was read, which makes long documents cheap. Not with an adapter."""

    warm_start: str | None = Field(None, min_length=1)
    """Start from what a run trained: the folder of a run, a checkpoint or an adapter. Optimizer and steps begin anew."""

    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Only for repositories that you have read."""
