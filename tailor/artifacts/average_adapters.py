"""The weighted average of LoRA adapters, exact: Σ wᵢ·sᵢ·Bᵢ·Aᵢ = [w₁s₁B₁ … wₙsₙBₙ] · [A₁; …; Aₙ]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import lora_settings, output, verify, verify_average
from tailor.artifacts.inputs import AverageInput, same_base
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.open_adapter import open_adapter
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import Writer
from tailor.errors import ModelError
from tailor.layout import ADAPTER_WEIGHTS
from tailor.models.adapter_files import write_config
from tailor.models.base_record import BaseRecord
from tailor.models.experts.attach import of_weights

_ABOUT = ("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "modules_to_save")
"""Keys of the first adapter's configuration that hold for the average."""


@dataclass(frozen=True)
class Settings:
    """Options of an average of adapters: see `average`."""

    rank: int | None = None
    tolerance: float | None = None
    check: verify.Check | None = None

    def given(self) -> list[str]:
        """The options that were given, for the user."""
        named = {"--rank": self.rank, "--tolerance": self.tolerance, "--verify": self.check}
        return [name for name, value in named.items() if value is not None]


def average_adapters(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the averaged adapter into `folder` and verify it. Returns values for the record.

    ModelError when the adapters cannot be averaged, or the average fails verification.
    """
    rank = settings.rank
    records = same_base(parts)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_adapter(part.folder, part.url)) for part in parts]
        adapters = [_lora(adapter) for adapter in opened]
        for adapter in adapters:
            lora_settings.require_plain(adapter.config, adapter.url)
        _require_linear(adapters)
        modules = sorted({module for adapter in adapters for module in adapter.updates})
        tensors: dict[str, torch.Tensor] = {}
        ranks: dict[str, int] = {}
        kept_squares = lost_squares = 0.0
        for module in modules:
            down, up = concatenated(adapters, shares, module)
            if rank is not None and rank < down.shape[-2]:
                down, up, kept, lost = reduced(down, up, rank)
                kept_squares, lost_squares = kept_squares + kept, lost_squares + lost
            names = next(adapter.updates[module] for adapter in adapters if module in adapter.updates)
            ranks[module] = down.shape[-2]
            # Of a stack of experts [E, r, in] and [out, r, E].
            tensors[names.down], tensors[names.up] = down.flatten(0, -2), up.flatten(1)
        for target in sorted(adapters[0].replaced):
            names_of = [adapter.replaced[target] for adapter in adapters]
            total = sum(
                adapter.reader.read(name).float() * share
                for adapter, name, share in zip(adapters, names_of, shares, strict=True)
            )
            assert isinstance(total, torch.Tensor)
            tensors[names_of[0]] = total
        with Writer(
            folder / ADAPTER_WEIGHTS, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}
        ) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        _write_config(folder, adapters, ranks)
    records[0].write(folder)
    for line in output.copy_texts(parts[0].folder, folder):
        say(line)
    record: dict[str, Any] = {"rank": max(ranks.values(), default=0)}
    if rank is not None:
        whole = kept_squares + lost_squares
        record["svd_error"] = (lost_squares / whole) ** 0.5 if whole else 0.0
        say(
            f"reduced to rank {record['rank']}: the update loses {record['svd_error']:.1e} of its Frobenius norm"
        )
    return record | _verified(folder, parts, shares, records[0], settings, say)


def _verified(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    base_record: BaseRecord,
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The verification for the record. ModelError when it fails. A reduced rank is expected to differ, and is only reported."""
    figures, only_layers = verify_average.measure(folder, parts, shares, base_record, settings.check)
    if only_layers is not None:
        say(f"compared only layers, because {only_layers}")
    for line in figures.lines():
        say(line)
    exact = settings.rank is None or settings.tolerance is not None
    reason = figures.refusal(settings.tolerance, verify_average.SUM) if exact else None
    if reason is not None:
        raise ModelError(
            f"the average fails verification: {reason}",
            hint="merge each adapter with `tailor merge` and average the models, or allow the difference with --tolerance",
        )
    limit = figures.limit(settings.tolerance) if exact else None
    return {"verification": {**figures.as_dict(), "tolerance": limit}}


def _lora(adapter: SavedAdapter) -> LoraAdapter:
    """ModelError for other kinds than LoRA."""
    if not isinstance(adapter, LoraAdapter):
        raise ModelError(
            f"{adapter.url} is a {adapter.kind.label} adapter; only updates of LoRA adapters can be averaged",
            hint="merge each adapter with `tailor merge`, then average the models",
        )
    return adapter


def _require_linear(adapters: Sequence[LoraAdapter]) -> None:
    """ModelError for adapters whose updates cannot be averaged: DoRA, and different modules trained in full."""
    for adapter in adapters:
        if adapter.dora:
            raise ModelError(
                f"{adapter.url} is a DoRA adapter, whose updates cannot be averaged: DoRA rescales each row to a trained norm",
                hint="merge each adapter with `tailor merge`, then average the models",
            )
        if adapter.rows:
            raise ModelError(
                f"{adapter.url} has trained rows of new tokens (model.add_tokens), which cannot be averaged",
                hint="merge each adapter with `tailor merge`, then average the models",
            )
        if adapter.replaced.keys() != adapters[0].replaced.keys():
            odd = min(adapter.replaced.keys() ^ adapters[0].replaced.keys())
            raise ModelError(
                f"{odd} was trained in full in only one of {adapters[0].url} and {adapter.url}",
                hint="merge each adapter with `tailor merge`, then average the models",
            )


def concatenated(
    adapters: Sequence[LoraAdapter], shares: Sequence[float], module: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors A [Σr, in] and B [out, Σr] of the weighted sum. Adapters without the module are skipped.

    Of a stack of experts [E, Σr, in] and [out, Σr, E].
    """
    downs, ups = [], []
    for adapter, share in zip(adapters, shares, strict=True):
        if module in adapter.updates:
            down, up = adapter.factors(module)
            if down.ndim != 2 and adapter.updates[module].experts is None:
                raise ModelError(
                    f"{adapter.url} adapts {module}, a convolution; only updates of linear and embedding layers can be averaged",
                    hint="merge each adapter with `tailor merge`, then average the models",
                )
            if downs and (
                down.shape[-1] != downs[0].shape[-1]
                or up.shape[0] != ups[0].shape[0]
                or down.shape[:-2] != downs[0].shape[:-2]
            ):
                raise ModelError(
                    f"the updates of {module} have different shapes in {adapters[0].url} and {adapter.url}",
                    hint="average adapters of one base",
                )
            downs.append(down)
            ups.append(up * share)
    return torch.cat(downs, dim=-2), torch.cat(ups, dim=1)


def reduced(
    down: torch.Tensor, up: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The best factors of rank at most `rank` (Eckart & Young 1936), and the squared singular values kept and lost.

    down: A [r, in]; up: B [out, r]; of a stack of experts [E, r, in] and [out, r, E]. The product [out, in] is never computed: after a QR decomposition of both factors, the
    SVD is of the small matrix [r, r] between them.
    """
    if down.ndim == 3:
        of_each = [reduced(down[e], up[:, :, e], rank) for e in range(len(down))]
        downs, ups, kept, lost = zip(*of_each, strict=True)
        return torch.stack(downs), torch.stack(ups, dim=-1), sum(kept), sum(lost)
    q_up, r_up = torch.linalg.qr(up.double())  # [out, r], [r, r]
    q_down, r_down = torch.linalg.qr(down.double().T)  # [in, r], [r, r]
    left, values, right = torch.linalg.svd(r_up @ r_down.T)  # [r, r], [r], [r, r]
    count = min(rank, len(values))
    root = values[:count].sqrt()
    new_up = (q_up @ left[:, :count]) * root  # [out, count]
    new_down = root[:, None] * (right[:count] @ q_down.T)  # [count, in]
    squares = values.square()
    return new_down.float(), new_up.float(), float(squares[:count].sum()), float(squares[count:].sum())


def _write_config(folder: Path, adapters: Sequence[LoraAdapter], ranks: dict[str, int]) -> None:
    """Write adapter_config.json, with nothing of the inputs but what the factors and the modules in full mean.

    The scale is already in the factors, so alpha equals the rank of each module (scale 1). Modules are selected by their
    full names: an adapter may have skipped some layers.
    """
    stacked = {module for adapter in adapters for module, update in adapter.updates.items() if update.experts}
    first, max_rank = adapters[0].config, max(ranks.values(), default=1)
    # PEFT takes the first pattern that matches the end of a name, so the longest names come first.
    ordered = {module: ranks[module] for module in sorted(ranks, key=len, reverse=True)}
    patterns = ordered if len(set(ranks.values())) > 1 else {}
    if patterns and stacked:
        raise ModelError(
            f"the adapters differ in their ranks or modules, and adapt experts in one tensor, as {adapters[0].url} does",
            hint="merge each adapter with `tailor merge`, then average the models",
        )
    named = first.get("target_parameters") or []
    # PEFT would take the names of some modules for experts: see `tailor.models.experts.attach`.
    by_weight = [name.removesuffix(".weight") for name in named if name.endswith(".weight")]
    odd = {module for module in ranks if any(f".{module}".endswith(f".{end}") for end in by_weight)}
    config = {
        **{key: first[key] for key in _ABOUT if key in first},
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": any(adapter.config.get("fan_in_fan_out") for adapter in adapters),
        "r": max_rank,
        "lora_alpha": max_rank,
        "rank_pattern": of_weights(patterns) if odd else patterns,
        "alpha_pattern": of_weights(patterns) if odd else patterns,
        "target_modules": sorted(ranks.keys() - stacked - odd),
    }
    parameters = [name for name in named if not name.endswith(".weight")]
    if parameters := [*parameters, *(f"{module}.weight" for module in sorted(odd))]:
        config["target_parameters"] = parameters
    write_config(folder, config)
