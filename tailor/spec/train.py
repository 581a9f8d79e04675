"""`train`: how long, in which batches, at which precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section

DEFAULT_BATCH_SIZE = 8
"""Rows of the global batch where neither `batch_size` nor `batch_tokens` is given."""


class Divergence(Section):
    """What is done when a step's loss or gradient norm is no finite number, or the norm is over a limit.

    In fp16 a norm that is none is first the gradient scaler's to fix: it leaves the step out and scales by less.
    """

    action: Literal["stop", "skip", "reload"] = "stop"
    """`stop` ends the run, `skip` leaves the step's update out, `reload` leaves out all updates since the last checkpoint."""

    grad_norm: float | None = Field(None, gt=0)
    """A gradient norm (before `optim.max_grad_norm`) above this counts as divergence."""

    limit: int = Field(3, ge=1)
    """Steps in a row that may be left out; after more the run stops."""


class Train(Section):
    """How long, in which batches, at which precision."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the data. Default 1 when neither `steps` nor `tokens` is given."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Not together with `epochs` or `tokens`."""

    tokens: int | None = Field(None, ge=1)
    """Tokens that the model reads, padding not counted: training ends with the step that reaches this number.

    Not together with `epochs` or `steps`.
    """

    batch_size: int | None = Field(None, ge=1)
    """Global batch in sequences, or in pairs of them (in packed rows when `data.pack` is on), over all workers. Default 8."""

    batch_tokens: int | None = Field(None, ge=1)
    """Global batch in tokens, over all workers. Not together with `batch_size`."""

    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences in one forward pass of one worker. Default: what fits, by the plan."""

    activation_checkpointing: bool | Annotated[int, Field(ge=1)] = False
    """Keep only each layer's input and recompute the rest: less memory, about a third more time. A number n: of every n-th layer."""

    activation_offloading: bool = False
    """Hold what activation checkpointing keeps in host memory: 2 bytes × hidden size per token and layer less on the GPU."""

    tiled_mlp: bool = False
    """Compute feed-forward blocks in tiles of tokens: their middle takes constant memory, and is computed once more."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic. `auto`: bf16 where the hardware has it (also CPUs with AMX or AVX512-BF16), else fp16 on a GPU, else fp32."""

    compile: bool = False
    """Compile the model with torch.compile: slower start, faster steps."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Decides the order of the data, the adapter's start and dropout."""

    divergence: Divergence = Divergence()
    """What is done when a step diverges."""
