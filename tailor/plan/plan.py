"""The plan: what a worker needs to know, and nothing that it must derive."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tailor.plan.batches import BatchSpec
from tailor.plan.memory import Memory
from tailor.spec.evaluate import Evaluate
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.save import Save
from tailor.spec.strategy import Strategy
from tailor.spec.train import Divergence

Precision = Literal["fp32", "bf16", "fp16"]
Reference = Literal["adapter_off", "copy", "precomputed"]


@dataclass(frozen=True)
class Plan:
    """One run, decided. Small, immutable, picklable; sent to every worker."""

    run_url: str
    tokens_url: str
    fingerprint: str
    """Of the prepared tokens."""
    train_fingerprint: str
    """Of their training split alone."""

    model: Model
    method: Method
    optim: Optim
    save: Save
    evaluate: Evaluate
    divergence: Divergence

    workers: int
    """At most: with a range, as many as there is room for."""
    gpu: bool
    strategy: Strategy
    strategy_reason: str
    deepspeed: dict[str, Any] | None
    """What DeepSpeed is given; None for other strategies."""
    precision: Precision
    frozen_dtype: Literal["float32", "bfloat16", "float16"]
    sequence_parallel: int
    """Workers that hold each sequence together."""
    activation_checkpointing: int
    """Of so many decoder layers one keeps its input only; 0 for none."""
    activation_offloading: bool
    tiled_mlp: bool
    compile: bool

    batches: BatchSpec
    row_length: int
    """Most tokens in one row: `batches.max_length`, or more where a pair is longer."""
    reference: Reference | None
    """Where a preference method's reference log-probabilities come from."""
    micro_batch_size: int
    accumulation: int
    """Forward passes of one worker (or of a group that holds sequences together) in one step, at most; of sequences,
    where texts are embedded too."""
    idle_workers: int
    """Workers (or groups) that have no micro-batch of their own in any step, and compute one that does not count."""
    chunk_size: int | None
    """Texts to embed in one forward pass, where the recipe says it."""
    chunk_tokens: int
    """Else their tokens, at most; 0 where nothing is embedded."""

    resume_from: str | None
    """URL of the checkpoint of another recipe that this one went on from: another run's, or an earlier one of its own."""
    steps: int
    steps_per_epoch: int
    token_budget: int | None
    """`train.tokens`."""
    run_tokens: int | None
    """Tokens that the run reads to reach the budget."""
    warmup_steps: int
    tokens_per_epoch: int
    supervised_tokens_per_epoch: int
    trained_parameters: int
    """Estimated from the config; the run logs the exact number."""
    memory: Memory

    def notes(self) -> list[str]:
        """What a user may not have meant."""
        if not self.idle_workers:
            return []
        who = "worker" if self.sequence_parallel == 1 else "group"
        without = (
            f"{self.idle_workers} {who} has" if self.idle_workers == 1 else f"{self.idle_workers} {who}s have"
        )
        each = f"{self.accumulation} × {self.micro_batch_size}"
        return [
            f"{without} no micro-batch in any step: {each} for each other one; lower train.micro_batch_size"
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for plan.json. Those of `batches` are not nested."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {**values, **values.pop("batches")}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
