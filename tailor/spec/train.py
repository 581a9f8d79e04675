"""`train`: training length, batch size, memory and precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section

DEFAULT_BATCH_SIZE = 8
"""Rows of the global batch when neither `batch_size` nor `batch_tokens` is given."""


class Divergence(Section):
    """What happens when the loss or gradient norm of a step is NaN or infinite, or the norm exceeds a limit.

    In fp16, the gradient scaler handles a non-finite norm first: it skips the step and lowers the loss scale.
    """

    action: Literal["stop", "skip", "reload"] = "stop"
    """`stop` ends the run with an error. `skip` leaves out the update of this step. `reload` returns to the last
    checkpoint and leaves out the updates since then.
    """

    grad_norm: float | None = Field(None, gt=0)
    """A gradient norm above this limit (before clipping by `optim.max_grad_norm`) counts as divergence. Default: no
    limit.
    """

    limit: int = Field(3, ge=1)
    """Number of consecutive steps that `skip` and `reload` may leave out. After more the run stops."""


class EarlyStopping(Section):
    """Training ends when the evaluations during training no longer improve. Needs `evaluate.every`.

    The final model has the weights of the last step, or with `save.best` those of the lowest evaluation loss.
    """

    patience: int = Field(3, ge=1)
    """Number of consecutive evaluations without an improvement after which training ends."""

    metric: str = Field("loss", min_length=1)
    """Metric of the evaluation: `loss`, one of the method, such as `token_accuracy` or `reward_margin`, or with
    `evaluate.retrieval` one of retrieval, such as `ndcg@10`. Losses and `perplexity` improve when they fall, the others
    when they rise.
    """

    min_delta: float = Field(0.0, ge=0)
    """An evaluation counts as an improvement if it is better by more than this than the best one that counted."""


class Pose(Section):
    """PoSE (positional skip-wise training, arXiv 2309.10400): position ids of short rows that cover a longer length.

    Each document is cut into chunks, and random skips between them raise the position ids, in training only. It costs what
    training at `data.max_length` costs.
    """

    length: int | None = Field(None, ge=9)
    """Number of positions to cover, more than `data.max_length`. Default: the longest sequence of the model, with
    `model.rope`.
    """

    chunks: int = Field(2, ge=2, le=1024)
    """Chunks of each document, of random lengths. There is a random skip, which may be 0, between every two."""


class Train(Section):
    """Training length, batch size, memory and precision."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training data. Default: 1 if neither `steps` nor `tokens` is given. Not together with them."""

    steps: int | None = Field(None, ge=1)
    """Number of optimizer steps. Not together with `epochs` or `tokens`."""

    tokens: int | None = Field(None, ge=1)
    """Number of tokens to train on, without padding. Training ends with the step that reaches it. Not together with
    `epochs` or `steps`.
    """

    batch_size: int | None = Field(None, ge=1)
    """Global batch size over all workers: the number of sequences, of preference pairs, or of packed rows with
    `data.pack`, per optimizer step. Default: 8. Not together with `batch_tokens`.
    """

    batch_tokens: int | None = Field(None, ge=1)
    """Global batch size in tokens, over all workers. Not together with `batch_size`."""

    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences in one forward pass of one worker. Default: as many as fit into memory by the plan's estimate.
    Gradient accumulation follows from it, so it does not change the loss curve.
    """

    order: Literal["shuffled", "short_to_long"] = "shuffled"
    """Order of the rows in an epoch. `short_to_long` is a curriculum over lengths: every epoch begins with the shortest rows
    and ends with the longest. Packed rows then contain examples of similar length and are less full.
    """

    pose: Pose | None = None
    """Train at `data.max_length` with position ids that cover a longer length. Extends a model's context cheaply together
    with `model.rope`. For the methods `sft` and `pretrain`. Default: off.
    """

    activation_checkpointing: bool | Annotated[int, Field(ge=1)] = False
    """Keep only the input of each layer and recompute its activations in the backward pass: needs much less memory
    and about a third more time. A number n does so for every n-th layer only.
    """

    activation_offloading: bool = False
    """Move the activations that activation checkpointing keeps to host memory. Saves 2 bytes × hidden size per token
    and layer on the GPU (bf16). Needs `activation_checkpointing`; use it for very long sequences.
    """

    tiled_mlp: bool = False
    """Compute the MLP blocks in tiles of tokens, so that their intermediate activations need constant memory. They
    are computed once more in the backward pass; use it for very long sequences.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the computation. `auto`: bf16 if the hardware supports it (also CPUs with AMX or AVX512-BF16),
    else fp16 on a GPU, else fp32.
    """

    compile: bool = False
    """Compile the decoder layers with torch.compile: slower start, faster steps."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of the data order, the adapter's initial weights and dropout."""

    early_stopping: EarlyStopping | None = None
    """Ends training when the evaluations no longer improve. Default: off."""

    divergence: Divergence = Divergence()
    """What happens when a step diverges (NaN loss or an exploding gradient norm)."""
