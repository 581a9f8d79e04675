"""The weighted average of LoRA adapters, exact: Σ wᵢ·sᵢ·Bᵢ·Aᵢ = [w₁s₁B₁ … wₙsₙBₙ] · [A₁; …; Aₙ]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import output
from tailor.artifacts.inputs import AverageInput, same_base
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.tensors import Writer
from tailor.errors import ModelError
from tailor.layout import ADAPTER_WEIGHTS
from tailor.models.adapter_files import write_config


def average_adapters(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    rank: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the averaged adapter into `folder`; returns what is to be recorded. ModelError."""
    records = same_base(parts)
    with ExitStack() as stack:
        adapters = [stack.enter_context(LoraAdapter(part.folder, part.url)) for part in parts]
        _require_linear(adapters)
        modules = sorted({module for adapter in adapters for module in adapter.updates})
        tensors: dict[str, torch.Tensor] = {}
        ranks: dict[str, int] = {}
        kept_squares = lost_squares = 0.0
        for module in modules:
            down, up = concatenated(adapters, shares, module)
            if rank is not None and rank < down.shape[0]:
                down, up, kept, lost = reduced(down, up, rank)
                kept_squares, lost_squares = kept_squares + kept, lost_squares + lost
            names = next(adapter.updates[module] for adapter in adapters if module in adapter.updates)
            tensors[names.down], tensors[names.up] = down, up
            ranks[module] = down.shape[0]
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
    output.copy_texts(parts[0].folder, folder)
    record: dict[str, Any] = {"rank": max(ranks.values())}
    if rank is not None:
        whole = kept_squares + lost_squares
        record["svd_error"] = (lost_squares / whole) ** 0.5 if whole else 0.0
        say(
            f"reduced to rank {record['rank']}: the update loses {record['svd_error']:.1e} of its Frobenius norm"
        )
    return record


def _require_linear(adapters: Sequence[LoraAdapter]) -> None:
    """What an average of updates means nothing for."""
    for adapter in adapters:
        if adapter.dora:
            raise ModelError(
                f"{adapter.url} is a DoRA adapter, whose rows are scaled to trained lengths: updates cannot be averaged",
                hint="merge each adapter with `tailor merge`, then average the models",
            )
        if adapter.replaced.keys() != adapters[0].replaced.keys():
            odd = min(adapter.replaced.keys() ^ adapters[0].replaced.keys())
            raise ModelError(
                f"{odd} was trained in full in one of {adapters[0].url} and {adapter.url} only",
                hint="merge each adapter with `tailor merge`, then average the models",
            )


def concatenated(
    adapters: Sequence[LoraAdapter], shares: Sequence[float], module: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [Σr, in] and B [out, Σr] of the weighted sum. An adapter without the module changes nothing there."""
    downs, ups = [], []
    for adapter, share in zip(adapters, shares, strict=True):
        if module in adapter.updates:
            down, up = adapter.factors(module)
            if downs and (down.shape[1] != downs[0].shape[1] or up.shape[0] != ups[0].shape[0]):
                raise ModelError(
                    f"the updates of {module} have other shapes in {adapters[0].url} and {adapter.url}",
                    hint="average adapters of one base",
                )
            downs.append(down)
            ups.append(up * share)
    return torch.cat(downs), torch.cat(ups, dim=1)


def reduced(
    down: torch.Tensor, up: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The best factors of at most `rank` (Eckart and Young), and the squared singular values kept and lost.

    The product itself, [out, in], is never made: the SVD is of the small core between two orthogonal factors.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T)
    count = min(rank, len(values))
    root = values[:count].sqrt()
    new_up = (q_up @ left[:, :count]) * root
    new_down = root[:, None] * (right[:count] @ q_down.T)
    squares = values.square()
    return new_down.float(), new_up.float(), float(squares[:count].sum()), float(squares[count:].sum())


def _write_config(folder: Path, adapters: Sequence[LoraAdapter], ranks: dict[str, int]) -> None:
    """PEFT's configuration for factors that hold their scale: alpha equals the rank of each module."""
    most = max(ranks.values())
    other = {module: rank for module, rank in ranks.items() if rank != most}
    config = {
        **adapters[0].config,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_rslora": False,
        "target_modules": sorted(ranks),  # whole names: an adapter may have left some layers out
    }
    write_config(folder, config)
