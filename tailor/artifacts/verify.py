"""Verifies a merge: compares the logits of the merged model with those of base and adapter, on rows of the run.

Averages are verified by `verify_average`. Both models compute in float32, so that the differences come from the merge and not from rounding in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tailor import machine
from tailor.artifacts.inputs import Source
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.encode.masks import EncodedExample
from tailor.errors import ModelError
from tailor.models import own_code, quantization, scoring_head, visibility
from tailor.models.architecture import auto_class, without_pooler
from tailor.models.causal import base_of
from tailor.models.experts.packed import is_placeholder, packed_stacks
from tailor.models.load import DTYPES
from tailor.store import Store, run_files
from tailor.store.scratch import scratch

Check = Literal["logits", "layers", "embeddings", "scores"]
TOLERANCE = 0.001
"""Largest allowed mean KL divergence, in nats per token, for an adapter whose own effect is much larger.

Measured on the quickstart: rounding to bfloat16 gives 4e-6; merging into the unquantized base of a QLoRA run gives 5e-3.
"""
LAYER_TOLERANCE = 0.02
"""Largest allowed relative error of a layer's output. Rounding to bfloat16 gives 0.002, nf4 gives 0.1."""
SHARE = 0.25
"""The KL divergence of a merge may be at most this share of the adapter's own KL divergence from the base."""
NOISE = 1e-6
"""KL divergence that is always allowed: another order of float32 sums can cause it."""
ROWS, LENGTH, LAYERS = 8, 128, 16
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody asks why.",
    "Water boils at 100 degrees Celsius at sea level; higher up it boils earlier.",
    "def area(width, height):\n    return width * height\n",
    "Hello Ms Brown, thank you for your letter of 3 May. We are glad to inform you that",
)
"""Texts to compare on when the run's tokens are not available."""


@dataclass(frozen=True)
class Figures:
    """Measured differences between a merged model and the trained one."""

    check: Check
    rows: str
    """Description of the compared rows."""
    tokens: int = 0
    kl: float = math.nan
    """Mean KL divergence of the merged model's next-token distribution from the trained model's, in nats per token."""
    max_difference: float = math.nan
    """Largest absolute difference of a logit."""
    mean_difference: float = math.nan
    top1: float = math.nan
    """Share of positions where both models have the same most probable token."""
    adapter_kl: float = math.nan
    """The same KL divergence for the base without the adapter: the adapter's own effect."""
    layer_error: float = math.nan
    """Largest relative error of a sampled layer's output (`layers` only)."""

    def as_dict(self) -> dict[str, Any]:
        """The measured values; those that were not measured (NaN) are left out."""
        return {key: value for key, value in vars(self).items() if value == value}  # NaN != NaN

    def lines(self) -> list[str]:
        """The result, for the user."""
        if self.check == "layers":
            return [f"verified on {self.rows}: largest relative error of an output {self.layer_error:.2e}"]
        line = (
            f"verified on {self.rows}, {self.tokens} tokens: |Δlogit| max {self.max_difference:.2e}, "
            f"mean {self.mean_difference:.2e}; KL {self.kl:.2e} nats per token "
            f"(the adapter's own effect: {self.adapter_kl:.2e}); top-1 agreement {self.top1:.1%}"
        )
        return [line]

    def limit(self, tolerance: float | None) -> float:
        """The largest allowed value of what `check` compares. tolerance: the user's own."""
        if tolerance is not None:
            return tolerance
        if self.check == "layers":
            return LAYER_TOLERANCE
        return max(NOISE, min(TOLERANCE, SHARE * self.adapter_kl))

    def refusal(self, tolerance: float | None, trained: str = "base and adapter as trained") -> str | None:
        """Why the result fails verification; None when it passes. trained: what it was compared with, for the message."""
        value, limit = (self.layer_error if self.check == "layers" else self.kl), self.limit(tolerance)
        if math.isfinite(value) and value <= limit:
            return None
        if self.check == "layers":
            return f"the relative error of a layer's output, against {trained}, is {value:.2e} (limit {limit:.1e})"
        return (
            f"its logits differ from those of {trained}: KL {value:.2e} nats per token (limit {limit:.1e}), "
            f"top-1 agreement {self.top1:.1%}, |Δlogit| up to {self.max_difference:.2e}"
        )


def require_memory(weights: int, device: torch.device) -> None:
    """ModelError when a model with this many parameters does not fit into memory in float32 (4 bytes each, plus 10%)."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.memory_bytes()
    if 4.4 * weights > available:
        raise ModelError(
            f"comparing logits needs {4.4 * weights / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB are available",
            hint="compare sampled layers instead of the whole model: --verify layers",
        )


def by_logits(
    folder: Path, source: Source, adapter: SavedAdapter, names: dict[str, str], device: torch.device
) -> Figures:
    """Compare the logits of the merged model in `folder` with those of base and adapter as trained.

    One model is in memory at a time; the logits of the first are kept on disk.
    """

    from tailor.artifacts.load import load_adapted

    rows, what = rows_of(folder, source.run)
    totals = Totals()
    with scratch() as temporary:
        trained = load_adapted(source.folder, source.url, source.base_record, source.spec, device)
        in_float32(trained, DTYPES[source.base_record.dtype])
        for number, logits in enumerate(logits_of(trained, rows, device)):
            torch.save(logits, temporary / f"{number}.pt")
        with trained.disable_adapter():
            for number, logits in enumerate(logits_of(trained, rows, device)):
                totals.add_base(torch.load(temporary / f"{number}.pt", weights_only=True), logits)
        del trained
        merged = load_merged(folder, source, device)
        for number, logits in enumerate(logits_of(merged, rows, device)):
            totals.add(torch.load(temporary / f"{number}.pt", weights_only=True), logits)
    return totals.figures(what)


def in_float32(model: Any, dtype: torch.dtype) -> Any:
    """Convert a model to compute in float32. Quantized weights are dequantized in `dtype`, that of training.

    On GPUs, 8-bit layers stay as they are: they round the activations too, which no weight can represent.
    """
    import bitsandbytes as bnb

    for tensor in (*model.parameters(), *model.buffers()):
        is_packed = getattr(tensor, "quant_state", None) is not None or is_placeholder(tensor)
        if tensor.is_floating_point() and not is_packed:
            tensor.data = tensor.data.float()
    for stack in packed_stacks(model):
        stack.compute = torch.float32
    for module in model.modules():
        # bitsandbytes would dequantize in the dtype of the input, float32.
        if isinstance(module, bnb.nn.Linear4bit) or (
            isinstance(module, bnb.nn.Linear8bitLt) and module.weight.device.type == "cpu"
        ):
            module.forward = partial(_dequantized_forward, module, dtype)
    return model.eval()


def _dequantized_forward(layer: Any, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    weight = quantization.dequantized(layer).to(dtype)
    return torch.nn.functional.linear(x, weight.to(x.dtype), layer.bias)


class Totals:
    """Accumulates the differences of logits over rows."""

    def __init__(self) -> None:
        self.tokens, self.kl, self.base_kl, self.same, self.sum, self.max = 0, 0.0, 0.0, 0, 0.0, 0.0
        self.numbers = 0

    def add_base(self, trained: torch.Tensor, base: torch.Tensor) -> None:
        """Add one row's logits of the trained model and of the base without adapter, both [T, V]."""
        self.base_kl += _divergence(trained, base)

    def add(self, trained: torch.Tensor, merged: torch.Tensor) -> None:
        """Add one row's logits of the trained and of the merged model, both [T, V]."""
        difference = (trained - merged).abs()  # [T, V]
        self.tokens += len(trained)
        self.numbers += difference.numel()
        self.sum += float(difference.double().sum())
        self.max = max(self.max, float(difference.max())) if torch.isfinite(difference).all() else math.inf
        self.same += int((trained.argmax(-1) == merged.argmax(-1)).sum())
        self.kl += _divergence(trained, merged)

    def figures(self, what: str) -> Figures:
        return Figures(
            check="logits",
            rows=what,
            tokens=self.tokens,
            kl=self.kl / self.tokens,
            max_difference=self.max,
            mean_difference=self.sum / self.numbers,
            top1=self.same / self.tokens,
            adapter_kl=self.base_kl / self.tokens,
        )


def _divergence(trained: torch.Tensor, other: torch.Tensor) -> float:
    """KL(trained ‖ other) in nats, summed over the positions. Both are logits, [T, V]."""
    p, q = trained.double().log_softmax(-1), other.double().log_softmax(-1)  # [T, V]
    return float((p.exp() * (p - q)).sum())


@torch.no_grad()
def logits_of(
    model: Any, rows: list[list[int]], device: torch.device, *, shorten: bool = True
) -> Iterator[torch.Tensor]:
    """The logits of each row, float32 [T, V] on the CPU. Rows are not batched, so there is no padding.

    shorten: whether windows and chunks are shortened, so that the rows are longer than each of them.
    """
    with visibility.shortened(base_of(model)) if shorten else nullcontext():
        for row in rows:
            ids = torch.tensor([row], device=device)  # [1, T]
            yield model(input_ids=ids, use_cache=False).logits[0].float().cpu()


def rows_of(folder: Path, run: Store) -> tuple[list[list[int]], str]:
    """Token ids to compare on, and their description: rows of the run, or `TEXTS` when its tokens are not available.

    folder: with the tokenizer.
    """
    from tailor.encode.tokenizer import load_tokenizer

    examples, what = examples_of(run)
    if examples:
        return [example.input_ids[:LENGTH].tolist() for example in examples], what
    tokenizer = load_tokenizer(str(folder))
    return [tokenizer.encode_prompt(text)[:LENGTH] for text in TEXTS], f"{len(TEXTS)} built-in texts"


def no_logits(path: str, instead: Check) -> ModelError:
    """The error for a comparison of logits of an encoder. path: of the base; instead: a check that it has."""
    return ModelError(f"{path} is an encoder, which has no logits to compare", hint=f"use --verify {instead}")


def load_merged(folder: Path, source: Source, device: torch.device) -> Any:
    """The merged model in `folder`, in float32. With a scoring head if its config.json names such a class."""
    from transformers import AutoConfig

    trusted = own_code.granted(source.spec)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    scores = scoring_head.is_declared(config.to_dict())
    network = auto_class(config, scores=scores).from_pretrained(
        folder,
        dtype=torch.float32,
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=trusted,
    )
    return without_pooler(network).eval()


def examples_of(run: Store) -> tuple[list[EncodedExample], str]:
    """Up to `ROWS` examples of the run, and their description; none when its tokens are not available."""
    from tailor.data.token_store import TokenStore, is_readable

    plan = run_files.plan_if_written(run)
    if plan and is_readable(plan["tokens_url"]):
        tokens = TokenStore.open(plan["tokens_url"])
        for name in ("evaluation", "train"):
            split = tokens.split(name)  # type: ignore[arg-type]
            if len(split):
                step = max(1, len(split) // ROWS)
                chosen = [split.example(at) for at in list(range(0, len(split), step))[:ROWS]]
                kind = "evaluation" if name == "evaluation" else "training"
                return chosen, f"{len(chosen)} {kind} rows of the run"
    return [], ""
