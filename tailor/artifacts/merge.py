"""`tailor merge`: an adapter into its base, tensor by tensor, proven against the model that was trained.

Every sum is made in float32 and rounded once. Nothing is published that gives other logits than base and adapter do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts import output, verify
from tailor.artifacts.base_model import Structure, as_quantized
from tailor.artifacts.inputs import Source, open_source
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.tensors import DTYPES as STORED
from tailor.artifacts.tensors import FLOATS, Reader, Writer, write_index
from tailor.encode.tokenizer_files import fix_tokenizer_class, own_files
from tailor.errors import ModelError
from tailor.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    EMBEDDING,
    MERGE_RECORD,
    MERGED,
    MODEL_CONFIG,
    PROJECTION,
    RECIPE,
)
from tailor.models import rope
from tailor.models.base_record import BaseRecord
from tailor.models.load import DTYPES

Onto = Literal["full", "dequantized"]
OWN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, "COMMIT", "README.md")
"""Of the adapter alone; everything else beside it (tokenizer, template, generation) goes into the model."""


@dataclass(frozen=True)
class Settings:
    """How to merge: see `merge`."""

    onto: Onto | None = None
    dtype: str = "auto"
    tolerance: float | None = None
    check: verify.Check = "logits"


@dataclass(frozen=True)
class Merged:
    """A published merge, and what was measured of it."""

    url: str
    figures: verify.Figures


def merge(
    url: str,
    to: str | None = None,
    *,
    onto: Onto | None = None,
    dtype: str = "auto",
    base: str | None = None,
    tolerance: float | None = None,
    check: verify.Check = "logits",
    say: Callable[[str], None] = lambda _: None,
) -> Merged:
    """Merge the adapter at `url` and publish the model at `to` (a run's `merged` folder by default).

    onto: the base's own weights (`full`), or what they became by quantization (`dequantized`, the default where
    training had a quantized base: those are the weights that the adapter was fitted to).
    dtype: of the result; `auto` keeps each tensor's own. Raises ModelError and StoreError.
    """
    source = open_source(url, base)
    if to is None and not source.run.exists(RECIPE):
        raise ModelError(f"{source.url} belongs to no run", hint="say with --to where the model goes")
    target = source.run.join(MERGED).url if to is None else to
    output.check(target, MERGE_RECORD)
    settings = Settings(onto, dtype, tolerance, check)
    with output.publication(target, MERGE_RECORD) as made:
        figures = merge_into(made.folder, source, settings, say)
    return Merged(made.url, figures)


def merge_into(
    folder: Path, source: Source, settings: Settings, say: Callable[[str], None] = lambda _: None
) -> verify.Figures:
    """Write the merged model into `folder`, and what was measured of it. ModelError when it is not the trained one."""
    onto = _onto(settings.onto, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with LoraAdapter(source.folder, source.url) as adapter, Reader.of_model(source.base) as reader:
        if settings.check == "logits":
            verify.require_memory(reader.weights(), device)
        names = write_model(folder, source, adapter, reader, onto, settings.dtype, device)
        _copy_files(folder, source)
        measure = verify.by_logits if settings.check == "logits" else verify.by_layers
        figures = measure(folder, source, adapter, names, device)
        say(f"merged {len(adapter.updates)} updates onto the {_onto_words(onto, source)}")
        for line in figures.lines():
            say(line)
        if (reason := figures.refusal(settings.tolerance)) is not None:
            raise ModelError(
                f"the merge of {source.url} is refused: {reason}", hint=_hint(source, onto, settings.dtype)
            )
        if (warning := fix_tokenizer_class(folder)) is not None:
            say(f"warning: {warning}")
        _record(folder, source, onto, settings, figures, adapter)
    return figures


def _onto_words(onto: Onto, source: Source) -> str:
    quantize = source.base_record.quantize
    if onto == "dequantized" and quantize is not None:
        return f"base as training held it: {quantize.type}, dequantized"
    return "base in its own precision"


def _onto(onto: Onto | None, source: Source) -> Onto:
    quantized = source.base_record.quantize is not None
    if onto == "dequantized" and not quantized:
        raise ModelError(
            f"--onto dequantized has no effect: the base of {source.url} was not quantized in training"
        )
    return onto or ("dequantized" if quantized else "full")


def _hint(source: Source, onto: Onto, dtype: str) -> str:
    if onto == "full" and source.base_record.quantize is not None:
        return "merge onto the weights that training saw (--onto dequantized), or allow the difference with --tolerance"
    if dtype != "float32":
        return "keep the sums with --dtype float32, or allow the difference with --tolerance"
    return "the base must be the model that the adapter was trained on, in the same precision"


def write_model(
    folder: Path,
    source: Source,
    adapter: LoraAdapter,
    reader: Reader,
    onto: Onto,
    dtype: str,
    device: torch.device,
) -> dict[str, str]:
    """Write the merged weights and the configuration, file by file as the base has them.

    Returns the base's stored name of each module's weight that has an update.
    """
    structure = Structure.of(source.base, trust_remote_code=source.spec.trust_remote_code)
    tied = structure.tied
    names = {
        name: stored
        for name in adapter.changed()
        if (stored := structure.stored_name(name, reader)) is not None
    }
    untie = tied is not None and bool(set(tied) & set(adapter.changed()))
    embedding = structure.stored_name(tied[0], reader) if tied is not None else None
    untied = (
        tied[1] if untie and tied is not None and structure.stored_name(tied[1], reader) is None else None
    )
    missing = [name for name in adapter.changed() if name not in names and name != untied]
    if missing:
        raise ModelError(
            f"the adapter at {source.url} changes {missing[0]}, which the files of its base {source.base} do not have",
            hint="the base must be the model that the adapter was trained on; one in an older layout must be loaded "
            "and saved by transformers first",
        )
    transposed = {module: structure.is_transposed(module) for module in adapter.updates}
    base_record = source.base_record if onto == "dequantized" else None
    quantized = _quantized(structure, base_record, reader)
    by_stored = {stored: name for name, stored in names.items()}

    def value(stored: str, name: str | None) -> torch.Tensor:
        """A tensor of the merged model. `name` is the model's name of what the adapter changes."""
        tensor = reader.read(stored)
        if base_record is not None and tensor.is_floating_point():
            tensor = tensor.to(DTYPES[base_record.dtype])
            if stored in quantized and base_record.quantize is not None:
                turned = tensor.T.contiguous() if quantized[stored] else tensor
                turned = as_quantized(turned, base_record.quantize, device).cpu()
                tensor = turned.T if quantized[stored] else turned
        if name in adapter.replaced:
            tensor = adapter.reader.read(adapter.replaced[name])
            if tuple(tensor.shape) != reader.about(stored).shape:
                raise ModelError(
                    f"the adapter at {source.url} replaces {name} by one of the shape {tuple(tensor.shape)}; "
                    f"its base has {reader.about(stored).shape}",
                    hint="the base must be the model that the adapter was trained on",
                )
        module = (name or "").removesuffix(".weight")
        if module in adapter.updates:
            tensor = adapter.merged(module, tensor.float(), transposed=transposed[module], name=stored)
        return tensor.to(_dtype(reader, stored, dtype))

    total, layout = 0, {}
    for number, (file, stored_names) in enumerate(reader.layout.items()):
        plan = {name: (_dtype(reader, name, dtype), reader.about(name).shape) for name in stored_names}
        extra = untied if number == 0 else None  # the head, which the base's files do not have
        if extra is not None and embedding is not None:
            plan[extra] = (_dtype(reader, embedding, dtype), reader.about(embedding).shape)
        with Writer(folder / file, plan) as writer:
            for stored in stored_names:
                writer.write(stored, value(stored, by_stored.get(stored)))
            if extra is not None and embedding is not None:
                writer.write(extra, value(embedding, extra))
        total += writer.bytes
        layout[file] = list(plan)
    write_index(folder, layout, total)
    if source.spec.rope is not None:
        rope.save_config(folder, source.spec)
    _write_config(folder, folder if source.spec.rope else source.base, dtype, untie=untie)
    return names if untied is None or embedding is None else {**names, untied: embedding}


def _quantized(structure: Structure, base_record: BaseRecord | None, reader: Reader) -> dict[str, bool]:
    """The stored names of the weights that training held quantized, and whether they stand there as [in, out]."""
    if base_record is None or base_record.quantize is None:
        return {}
    modules = {name for name, module in structure.model.named_modules() if hasattr(module, "weight")}
    transposed = {f"{name}.weight": structure.is_transposed(name) for name in modules}
    found = structure.quantized(base_record.quantize, DTYPES[base_record.dtype])
    return {
        stored: transposed[name]
        for name in found
        if (stored := structure.stored_name(name, reader)) is not None
    }


def _dtype(reader: Reader, name: str, wanted: str) -> torch.dtype:
    stored = reader.about(name).dtype
    return STORED[stored] if wanted == "auto" or stored not in FLOATS else DTYPES[wanted]


def _write_config(folder: Path, base: Path, dtype: str, *, untie: bool) -> None:
    config: dict[str, Any] = json.loads((base / MODEL_CONFIG).read_text())
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        if untie:
            part["tie_word_embeddings"] = False
        if dtype != "auto":
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    (folder / MODEL_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _copy_files(folder: Path, source: Source) -> None:
    """The adapter's tokenizer, template and generation settings; the base's where the adapter has none."""
    for pattern in ("*.py", "LICENSE*", "NOTICE*"):
        for path in sorted(source.base.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    of_adapter = own_files(source.folder)
    for origin, but in ((source.base, of_adapter), (source.folder, ())):
        for path in sorted(origin.iterdir()):
            weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
            text = path.suffix in (".json", ".jinja", ".model", ".txt")
            left = (*OWN, MODEL_CONFIG, EMBEDDING, *but)
            if path.is_file() and text and not weights and path.name not in left:
                shutil.copyfile(path, folder / path.name)
    # What the base says of its embeddings says nothing of what the adapter made of them.
    for name in (EMBEDDING, PROJECTION):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)


def _record(
    folder: Path,
    source: Source,
    onto: Onto,
    settings: Settings,
    figures: verify.Figures,
    adapter: LoraAdapter,
) -> None:
    base_record = source.base_record
    values = {
        "adapter": source.url,
        "base": base_record.path,
        "base_weights": base_record.weights
        or "not known: the adapter does not say which weights it was trained on",
        "onto": onto,
        "dtype": settings.dtype,
        "trained_with": {
            "dtype": base_record.dtype,
            "quantize": base_record.quantize and base_record.quantize.model_dump(),
        },
        "updates": len(adapter.updates),
        "replaced": sorted(adapter.replaced),
        "verification": {**figures.as_dict(), "tolerance": figures.limit(settings.tolerance)},
    }
    (folder / MERGE_RECORD).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
