"""Verifies an average of adapters: PEFT loads it, and it is compared with PEFT's weighted sum of the adapters themselves.

In that sum, each adapter is loaded by its own configuration, and all of them act at once on one base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import verify, verify_layers, verify_scores
from tailor.artifacts.base_model import base_folder, model_spec
from tailor.artifacts.inputs import AverageInput, stores_plain_weights
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.tensors import Reader
from tailor.artifacts.trained_layer import trained_layer
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG
from tailor.models import adapter_files, files, scoring_head
from tailor.models.base_record import BaseRecord
from tailor.models.experts import attach
from tailor.models.load import DTYPES
from tailor.models.own_code import UntrustedCodeError
from tailor.plan import encoders
from tailor.store import OBJECT
from tailor.store.scratch import scratch

SUM = "the weighted sum of the adapters"


def measure(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    base_record: BaseRecord,
    check: verify.Check | None,
) -> tuple[verify.Figures | verify_scores.ScoreFigures, str | None]:
    """Compare the average in `folder` with the adapters. Also returns why only layers were compared, for the user.

    check: None compares logits, or the scores of rerankers, if the base's ordinary weights are on this machine and fit into
    memory, else layers, which need no base.
    ModelError when what `check` names cannot be compared.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = scoring_head.is_adapter(adapter_files.read_config(parts[0].folder))
    if check in ("logits", "scores") and scores != (check == "scores"):
        raise ModelError(
            f"{parts[0].url} is {'a' if scores else 'no'} reranker, and --verify {check} compares {check}",
            hint=f"use --verify {'scores' if scores else 'logits'}",
        )
    if check == "layers":
        return by_layers(folder, parts, shares, base_record, device), None
    try:
        if check is None and files.cached_folder(base_record.path, base_record.revision) is None:
            raise ModelError(f"the base {base_record.path} is not on this machine")
        spec = model_spec(base_record, parts[0].trust)
        base = base_folder(base_record, parts[0].url, spec)
        base_record.check(base, parts[0].url, hint=f"restore the weights of {base_record.path}")
        if not scores and encoders.is_encoder(OBJECT.read_path(base / MODEL_CONFIG)):
            raise verify.no_logits(base_record.path, "layers")
        if stores_plain_weights(base):
            with Reader.of_model(base) as reader:
                verify.require_memory(reader.weights(), device)
        elif check is None:
            raise ModelError(f"the base {base_record.path} is stored quantized, so its memory is not known")
    except ModelError as error:
        if check is None:
            return by_layers(folder, parts, shares, base_record, device), error.message
        raise
    try:
        if scores:
            return by_scores(folder, parts, shares, base_record, device), None
        return by_logits(folder, parts, shares, base_record, device), None
    except UntrustedCodeError as error:
        if check is None:
            return by_layers(folder, parts, shares, base_record, device), error.message
        raise


def by_logits(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    base_record: BaseRecord,
    device: torch.device,
) -> verify.Figures:
    """Compare logits. One model is in memory at a time; the logits of the first are kept on disk."""
    from tailor.artifacts.load import load_adapted

    rows, what = verify.rows_of(folder, parts[0].run)
    totals = verify.Totals()
    with scratch() as temporary:
        summed = verify.in_float32(_summed(parts, shares, base_record, device), DTYPES[base_record.dtype])
        for number, logits in enumerate(verify.logits_of(summed, rows, device)):
            torch.save(logits, temporary / f"{number}.pt")
        with summed.disable_adapter():
            for number, logits in enumerate(verify.logits_of(summed, rows, device)):
                totals.add_base(torch.load(temporary / f"{number}.pt", weights_only=True), logits)
        del summed
        spec = model_spec(base_record, parts[0].trust)
        averaged = load_adapted(folder, "the average", base_record, spec, device)
        verify.in_float32(averaged, DTYPES[base_record.dtype])
        for number, logits in enumerate(verify.logits_of(averaged, rows, device)):
            totals.add(torch.load(temporary / f"{number}.pt", weights_only=True), logits)
    return totals.figures(what)


def by_scores(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    base_record: BaseRecord,
    device: torch.device,
) -> verify_scores.ScoreFigures:
    """Compare the scores of rerankers. One model is in memory at a time."""
    from tailor.artifacts.load import load_adapted

    pairs, what = verify_scores.pairs_of(folder, parts[0].run)
    summed = verify.in_float32(_summed(parts, shares, base_record, device), DTYPES[base_record.dtype])
    expected = verify_scores.scores_of(summed, pairs, device)
    base = verify_scores.without_updates(summed, pairs, device)
    del summed
    spec = model_spec(base_record, parts[0].trust)
    averaged = load_adapted(folder, "the average", base_record, spec, device)
    verify.in_float32(averaged, DTYPES[base_record.dtype])
    found = verify_scores.scores_of(averaged, pairs, device)
    return verify_scores.figures(expected, base, found, what)


@torch.no_grad()
def _summed(
    parts: Sequence[AverageInput], shares: Sequence[float], base_record: BaseRecord, device: torch.device
) -> Any:
    """The base with all adapters active in PEFT, each scaled by its share, and the mean of modules trained in full."""
    from peft import PeftConfig
    from peft.tuners.lora import LoraLayer

    from tailor.artifacts.load import load_adapted

    first = parts[0]
    model = load_adapted(first.folder, first.url, base_record, model_spec(base_record, first.trust), device)
    names = ["default", *(f"part{number}" for number in range(1, len(parts)))]
    for part, name in zip(parts[1:], names[1:], strict=True):
        try:
            config = PeftConfig.from_pretrained(str(part.folder))
            attach.from_peft(config, model.get_base_model())
            with attach.as_named(model.get_base_model()):
                model.add_adapter(name, config)
                model.load_adapter(str(part.folder), name, torch_device=str(device))
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise ModelError(
                f"PEFT cannot load the adapter at {part.url} beside {first.url}: {' '.join(str(error).split())[:200]}",
                hint="merge each adapter with `tailor merge`, then average the models",
            ) from error
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(names)
            for name, share in zip(names, shares, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= share
    # With buffers: routers have some (`e_score_correction_bias`).
    tensors = model.state_dict(keep_vars=True)
    in_full = {name.replace(".modules_to_save.default", ""): tensor for name, tensor in tensors.items()}
    readers = [LoraAdapter(part.folder, part.url) for part in parts]
    for target, name in readers[0].replaced.items():
        mean = sum(
            reader.reader.read(reader.replaced[target]).double() * share
            for reader, share in zip(readers, shares, strict=True)
        )
        in_full[name].data = torch.as_tensor(mean, dtype=torch.float32, device=device)
    for reader in readers:
        reader.__exit__(None, None, None)
    return model


@torch.no_grad()
def by_layers(
    folder: Path,
    parts: Sequence[AverageInput],
    shares: Sequence[float],
    base_record: BaseRecord,
    device: torch.device,
) -> verify.Figures:
    """Compare the updates of sampled layers, as PEFT computes them for random inputs. Needs no base."""
    bare = replace(base_record, quantize=None, dtype="float32")
    with LoraAdapter(folder, "the average") as average:
        modules = sorted(average.updates)
        chosen = modules[:: max(1, len(modules) // verify.LAYERS)][: verify.LAYERS]
        errors = []
        for module in chosen:
            update = average.updates[module]
            into = average.reader.about(update.down).shape[1]
            out = average.reader.about(update.up).shape[0]
            zero = torch.zeros(*(() if update.experts is None else (update.experts,)), out, into)
            inputs = torch.randn(verify_layers.INPUTS, into, generator=torch.Generator().manual_seed(0)).to(
                device
            )
            actual = trained_layer(bare, average, module, zero, device)(inputs)  # [INPUTS, out]
            expected = torch.zeros_like(actual)
            for part, share in zip(parts, shares, strict=True):
                with LoraAdapter(part.folder, part.url) as adapter:
                    if module in adapter.updates:
                        layer = trained_layer(bare, adapter, module, zero, device)
                        expected += share * layer(inputs)
            difference, norm = float((actual - expected).norm()), float(expected.norm())
            errors.append(0.0 if difference == 0 else difference / norm if norm else math.inf)
    finite = all(math.isfinite(error) for error in errors)
    return verify.Figures(
        check="layers",
        rows=f"{len(chosen)} of {len(modules)} layers",
        layer_error=max(errors, default=0.0) if finite else math.inf,
    )
