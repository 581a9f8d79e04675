"""The weights and the config.json of a merged model, written tensor by tensor, in the same files as the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts.base_model import Structure, as_quantized, forget_quantization, set_vocabulary
from tailor.artifacts.inputs import Source
from tailor.artifacts.merged_head import head_of, kept_names
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import DTYPES as STORED
from tailor.artifacts.tensors import FLOATS, Reader, Writer, write_index
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG
from tailor.models import rope, scoring_head
from tailor.models.base_record import BaseRecord
from tailor.models.load import DTYPES
from tailor.store import OBJECT

Onto = Literal["full", "dequantized"]
"""What an adapter is merged into: the base's stored weights, or its quantized and dequantized ones."""


def write_model(
    folder: Path,
    source: Source,
    structure: Structure,
    adapter: SavedAdapter,
    reader: Reader,
    onto: Onto,
    dtype: str,
    device: torch.device,
) -> dict[str, str]:
    """Write the merged weights, in the same files as the base, and the configuration.

    Returns, for each changed tensor, the name under which the base's files store it. ModelError when the base does not
    have a changed tensor, or has it in another shape.
    """
    head = head_of(structure, adapter, source)
    kept = kept_names(structure, head, reader, source)
    tied = structure.tied
    locations = {
        name: stored
        for name in adapter.changed()
        if name not in head and (stored := structure.stored_names(name, reader))
    }
    names = {name: whole for name in locations if (whole := structure.stored_name(name, reader)) is not None}
    # Trained rows of a tied embedding are those of the head too.
    untie = tied is not None and bool(set(tied) & (set(adapter.changed()) - set(adapter.rows)))
    embedding = structure.stored_name(tied[0], reader) if tied is not None else None
    untied = (
        tied[1] if untie and tied is not None and structure.stored_name(tied[1], reader) is None else None
    )
    missing = [name for name in adapter.changed() if name not in {*locations, untied, *head}]
    if missing:
        raise ModelError(
            f"the adapter at {source.url} changes {missing[0]}, which its base {source.base} does not have",
            hint="the base must be the model that the adapter was trained on; load and save a base in an older layout "
            "with transformers first",
        )
    transposed = {
        module: module not in locations and structure.is_transposed(module) for module in adapter.updates
    }
    base_record = source.base_record if onto == "dequantized" else None
    quantized = _quantized(structure, base_record)
    for name in quantized:
        locations.setdefault(name, structure.stored_names(name, reader))
    # Tensors of the model that the files store in parts or under another name, such as a layer's experts.
    parts = {stored: name for name, found in locations.items() for stored in found if name not in names}
    pending: dict[str, torch.Tensor] = {}
    names |= {name: found[0] for name, found in locations.items() if len(found) == 1}
    for module in adapter.updates if adapter.kind.scales_bias else ():
        if (bias := structure.stored_name(f"{module}.bias", reader)) is not None:
            names[f"{module}.bias"] = bias
    by_stored = {stored: name for name, stored in names.items()} | parts

    grown = {
        names[name]: max(token + 1 for token in adapter.row_ids(name))
        for name in adapter.rows
        if name in names
    }

    def shape(stored: str) -> tuple[int, ...]:
        """The shape of a tensor of the merged model."""
        first, *rest = reader.about(stored).shape or (0,)
        return (max(first, grown[stored]), *rest) if stored in grown else reader.about(stored).shape

    def value(stored: str, name: str | None) -> torch.Tensor:
        """A tensor of the merged model. stored: its name in the files; name: its name in the model if that is known."""
        if stored not in parts:
            return changed(reader.read(stored), name, stored).to(_dtype(reader, stored, dtype))
        if stored not in pending:
            tensor, found = parts[stored], locations[parts[stored]]
            divided = structure.parts(tensor, changed(structure.read(tensor, reader), tensor, tensor))
            pending.update(zip(found, divided.values(), strict=True))
        return pending.pop(stored).to(_dtype(reader, stored, dtype))

    def changed(tensor: torch.Tensor, name: str | None, stored: str) -> torch.Tensor:
        """A tensor of the base as in training, with the adapter's change. stored: its name for messages."""
        if base_record is not None and tensor.is_floating_point():
            tensor = tensor.to(DTYPES[base_record.dtype])
            if name in quantized and base_record.quantize is not None:
                turned = tensor.T.contiguous() if quantized[name] else tensor
                turned = as_quantized(turned, base_record.quantize, device).cpu()
                tensor = turned.T if quantized[name] else turned
        if name in adapter.replaced:
            replaced = adapter.reader.read(adapter.replaced[name])
            if replaced.shape != tensor.shape:
                raise ModelError(
                    f"the adapter at {source.url} has {name} with the shape {tuple(replaced.shape)}, but its base has the shape "
                    f"{tuple(tensor.shape)}",
                    hint="the base must be the model that the adapter was trained on",
                )
            tensor = replaced
        if name in adapter.rows:
            tensor = adapter.with_rows(name, tensor, shape(stored)[0])
        if name in adapter.updates:  # a stack of experts
            return adapter.merged(name, tensor.float(), transposed=False, name=name)
        module = (name or "").removesuffix(".weight")
        if module in adapter.updates:
            tensor = adapter.merged(module, tensor.float(), transposed=transposed[module], name=stored)
        elif (module := (name or "").removesuffix(".bias")) in adapter.updates:
            tensor = adapter.merged_bias(module, tensor.float(), stored)
        return tensor

    total, layout = 0, {}
    of_head = {name: adapter.reader.about(adapter.replaced[name]).shape for name in sorted(head)}
    table = structure.stored_name(structure.embedding, reader) if head else None
    for number, (file, found) in enumerate(reader.layout.items()):
        stored_names = [name for name in found if name in kept]
        plan = {kept[name]: (_dtype(reader, name, dtype), shape(name)) for name in stored_names}
        if number == 0 and table is not None:  # the head has the dtype of the embedding
            plan |= {name: (_dtype(reader, table, dtype), size) for name, size in of_head.items()}
        extra = (
            untied if number == 0 else None
        )  # the head: tied to the embedding in the base, separate after the merge
        if extra is not None and embedding is not None:
            plan[extra] = (_dtype(reader, embedding, dtype), reader.about(embedding).shape)
        with Writer(folder / file, plan) as writer:
            for stored in stored_names:
                writer.write(kept[stored], value(stored, by_stored.get(stored)))
            for name in (one for one in of_head if one in plan):
                writer.write(name, adapter.reader.read(adapter.replaced[name]).to(plan[name][0]))
            if extra is not None and embedding is not None:
                writer.write(extra, value(embedding, extra))
        total += writer.bytes
        layout[file] = list(plan)
    write_index(folder, layout, total)
    if source.spec.rope is not None:
        rope.save_config(folder, source.spec)
    vocabulary = max((shape(stored)[0] for stored in grown), default=None)
    base = folder if source.spec.rope else source.weights
    scorer = structure.model if head else None
    _write_config(folder, base, dtype, vocabulary, untie=untie, scorer=scorer)
    return names if untied is None or embedding is None else {**names, untied: embedding}


def _quantized(structure: Structure, base_record: BaseRecord | None) -> dict[str, bool]:
    """Name in the model of each weight that was quantized in training -> whether it is [in, out]."""
    if base_record is None or base_record.quantize is None:
        return {}
    modules = {name for name, module in structure.model.named_modules() if hasattr(module, "weight")}
    transposed = {f"{name}.weight": structure.is_transposed(name) for name in modules}
    found = structure.quantized(base_record.quantize, DTYPES[base_record.dtype])
    return {name: transposed.get(name, False) for name in found}


def _dtype(reader: Reader, name: str, requested: str) -> torch.dtype:
    stored = reader.about(name).dtype
    return STORED[stored] if requested == "auto" or stored not in FLOATS else DTYPES[requested]


def _write_config(
    folder: Path, base: Path, dtype: str, vocabulary: int | None, *, untie: bool, scorer: Any | None
) -> None:
    """scorer: the network with its scoring head, for a reranker."""
    config: dict[str, Any] = OBJECT.read_path(base / MODEL_CONFIG)
    forget_quantization(config)
    if scorer is not None:
        scoring_head.declare(config, scorer)
    if vocabulary is not None:
        set_vocabulary(config, vocabulary)
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        if untie:
            part["tie_word_embeddings"] = False
        if dtype != "auto":
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    (folder / MODEL_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
