"""The plan: everything that a worker needs, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tailor.plan import short_context
from tailor.plan.batches import BatchSpec
from tailor.plan.memory import Memory
from tailor.plan.outline import ParameterGroup
from tailor.spec.evaluate import Evaluate
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.save import Save
from tailor.spec.strategy import Strategy
from tailor.spec.train import Divergence, EarlyStopping, Pose

Precision = Literal["fp32", "bf16", "fp16"]
Reference = Literal["adapter_off", "copy", "precomputed"]


@dataclass(frozen=True)
class SourceTokens:
    """What a training source gives to an epoch."""

    path: str
    tokens: int


@dataclass(frozen=True)
class Plan:
    """All decisions about a run. Immutable and picklable; sent to every worker, and saved as plan.json."""

    run_url: str
    tokens_url: str
    fingerprint: str
    """Fingerprint of the prepared tokens."""
    train_fingerprint: str
    """Fingerprint of their training split."""
    order_version: int
    """Version of the order of its batches: other versions of tailor may make other batches from the same tokens."""

    model: Model
    method: Method
    optim: Optim
    save: Save
    evaluate: Evaluate
    divergence: Divergence
    early_stopping: EarlyStopping | None
    pose: Pose | None
    """With its `length`."""

    workers: int
    """Number of workers; the maximum, if `scale.workers` is a range."""
    gpu: bool
    strategy: Strategy
    strategy_reason: str
    deepspeed: dict[str, Any] | None
    """The DeepSpeed config; None for other strategies."""
    precision: Precision
    frozen_dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["nf4", "fp4", "int8"] | None
    """Of the frozen weights: by `model.quantize`, or as the base stores them."""
    sequence_parallel: int
    """Number of workers that each sequence is split over."""
    activation_checkpointing: int
    """One of N decoder layers is checkpointed (keeps only its input); 0 for none."""
    activation_offloading: bool
    tiled_mlp: bool
    compile: bool

    batches: BatchSpec
    row_length: int
    """Tokens of the longest row: at most `batches.max_length`, or more if a preference pair is longer."""
    reference: Reference | None
    """The source of a preference method's reference log-probabilities."""
    micro_batch_size: int
    accumulation: int
    """Maximum number of micro-batches of one worker (or sequence-parallel group) in a step. Texts to embed are not
    counted."""
    idle_workers: int
    """Workers (or sequence-parallel groups) without a micro-batch in any step. They compute padding with weight 0."""
    smaller_than_batch: dict[str, int]
    """Key of a batch size that no batch reaches -> what the data have for a batch: rows, queries of a source, or sequences."""
    chunk_size: int | None
    """Texts to embed per forward pass, if the recipe sets it."""
    chunk_tokens: int
    """Otherwise the maximum number of their tokens; 0 if no texts are embedded."""

    resume_from: str | None
    """URL of the checkpoint that this recipe started from: of another run, or of an earlier recipe of the same run."""
    steps: int
    steps_per_epoch: int
    token_budget: int | None
    """`train.tokens` of the recipe."""
    run_tokens: int | None
    """Tokens that the run reads to reach the budget."""
    warmup_steps: int
    decay_steps: int
    """Steps of the decay of the schedule `wsd`; 0 for the others."""
    tokens_per_epoch: int
    source_tokens: tuple[SourceTokens, ...]
    """Tokens of each training source in the first epoch; empty for `method.name: gritlm`."""
    supervised_tokens_per_epoch: int
    trained_parameters: int
    total_parameters: int
    positions: int | None
    """Maximum positions of the base with `model.rope`; None if it has no limit."""
    base_positions: int | None
    """The same without `model.rope`."""
    active_parameters: int
    """Those that a token uses: without the experts that it is not routed to, and without the table that it is looked up in."""
    parameters_estimated: str | None
    """Why the numbers of parameters are estimates from `config.json`; null if they are counted."""
    parameter_groups: tuple[ParameterGroup, ...]
    """The trained weights by weight decay and learning rate; empty if the numbers are estimates."""
    base_dropout: dict[str, float]
    """Dropouts of the base model that are active in training: key in its `config.json` -> probability."""
    memory: Memory

    @property
    def pass_tokens(self) -> int:
        """Maximum tokens of a forward pass in training, over the workers that a sequence is split over."""
        return max(self.micro_batch_size * self.row_length, self.chunk_tokens)

    def dropout_text(self) -> str:
        """The active dropouts of the base, and how to turn them off."""
        shown = ", ".join(f"{key} {value:g}" for key, value in self.base_dropout.items())
        return f"of the base: {shown}; model.base_dropout: 0 turns it off"

    def notes(self) -> list[str]:
        """Warnings about settings that the user may not have intended."""
        notes = [
            f"{key} is larger than the data: {_TOO_FEW[key].format(n)}"
            for key, n in self.smaller_than_batch.items()
        ]
        if short := short_context.note(self.model, self.method, self.evaluate, self.base_positions):
            notes.append(short)
        if (
            self.batches.order == "short_to_long"
            and self.steps - self.batches.first_step < self.steps_per_epoch
        ):
            notes.append(
                f"with train.order: short_to_long, {self.steps} steps end before the longest rows of an epoch "
                f"({self.steps_per_epoch} steps)"
            )
        if not self.idle_workers:
            return notes
        unit = "workers" if self.sequence_parallel == 1 else "worker groups"
        total = self.workers // self.sequence_parallel
        note = (
            f"{self.idle_workers} of {total} {unit} would be idle: a batch has fewer than {total} micro-batches of "
            f"{self.micro_batch_size}; lower train.micro_batch_size"
        )
        return [*notes, note]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for plan.json. The fields of `batches` are on the top level."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {**values, **values.pop("batches")}


_TOO_FEW = {
    "train.batch_size": "an epoch has {:,} rows, and is one step",
    "method.embedding_batch_size": "the queries of a step are of one dataset (method.batch_by), and none has more than {:,}",
    "method.generative_batch_size": "there are {:,} sequences, so each step repeats some",
}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
