"""The weights and the config.json of a merged model, written tensor by tensor.

A reranker's head is the adapter's: the base has none, or another one. Its files name the tensors as transformers' class does,
because those of a base may lack the prefix of the class (`encoder…` for `bert.encoder…`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts.base_model import Structure, as_quantized, forget_quantization, set_vocabulary
from tailor.artifacts.inputs import Source
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import DTYPES as STORED
from tailor.artifacts.tensors import FLOATS, Reader, Writer, write_index
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG
from tailor.models import adapter_files, own_code, rope, scoring_head
from tailor.models.base_record import BaseRecord
from tailor.models.load import DTYPES
from tailor.store import OBJECT

Onto = Literal["full", "dequantized"]
"""What an adapter is merged into: the base's stored weights, or its quantized and dequantized ones."""


def write_model(
    folder: Path,
    source: Source,
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
    trusted = own_code.granted(source.spec)
    scores = scoring_head.is_adapter(adapter_files.read_config(source.folder))
    structure = Structure.of(
        source.weights, trust_remote_code=trusted, scorer=source.folder if scores else None
    )
    head = scoring_head.weights_of(structure.model) if scores else set()
    if lacking := sorted(head - adapter.replaced.keys()):
        raise ModelError(
            f"the adapter at {source.url} lacks {lacking[0]} of the scoring head",
            hint="only an adapter that was trained with method rerank can be merged into a reranker",
        )
    renamed = _of_the_class(structure, head, reader, source) if scores else {name: name for name in reader}
    tied = structure.tied
    names = {
        name: stored
        for name in adapter.changed()
        if name not in head and (stored := structure.stored_name(name, reader)) is not None
    }
    # Trained rows of a tied embedding are those of the head too.
    untie = tied is not None and bool(set(tied) & (set(adapter.changed()) - set(adapter.rows)))
    embedding = structure.stored_name(tied[0], reader) if tied is not None else None
    untied = (
        tied[1] if untie and tied is not None and structure.stored_name(tied[1], reader) is None else None
    )
    missing = [name for name in adapter.changed() if name not in {*names, untied, *head}]
    if missing:
        raise ModelError(
            f"the adapter at {source.url} changes {missing[0]}, which its base {source.base} does not have",
            hint="the base must be the model that the adapter was trained on; load and save a base in an older layout "
            "with transformers first",
        )
    transposed = {module: structure.is_transposed(module) for module in adapter.updates}
    base_record = source.base_record if onto == "dequantized" else None
    quantized = _quantized(structure, base_record, reader)
    for module in adapter.updates if adapter.kind.scales_bias else ():
        if (bias := structure.stored_name(f"{module}.bias", reader)) is not None:
            names[f"{module}.bias"] = bias
    by_stored = {stored: name for name, stored in names.items()}

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
        """A tensor of the merged model. stored: its name in the files; name: its name in the model if the adapter changes it."""
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
                    f"the adapter at {source.url} has {name} with the shape {tuple(tensor.shape)}, but its base has the shape "
                    f"{reader.about(stored).shape}",
                    hint="the base must be the model that the adapter was trained on",
                )
        if name in adapter.rows:
            tensor = adapter.with_rows(name, tensor, shape(stored)[0])
        module = (name or "").removesuffix(".weight")
        if module in adapter.updates:
            tensor = adapter.merged(module, tensor.float(), transposed=transposed[module], name=stored)
        elif (module := (name or "").removesuffix(".bias")) in adapter.updates:
            tensor = adapter.merged_bias(module, tensor.float(), stored)
        return tensor.to(_dtype(reader, stored, dtype))

    total, layout = 0, {}
    of_head = {name: adapter.reader.about(adapter.replaced[name]).shape for name in sorted(head)}
    table = structure.stored_name(structure.embedding, reader) if head else None
    for number, (file, found) in enumerate(reader.layout.items()):
        stored_names = [name for name in found if name in renamed]
        plan = {renamed[name]: (_dtype(reader, name, dtype), shape(name)) for name in stored_names}
        if number == 0 and table is not None:  # the head has the dtype of the embedding
            plan |= {name: (_dtype(reader, table, dtype), size) for name, size in of_head.items()}
        extra = (
            untied if number == 0 else None
        )  # the head: tied to the embedding in the base, separate after the merge
        if extra is not None and embedding is not None:
            plan[extra] = (_dtype(reader, embedding, dtype), reader.about(embedding).shape)
        with Writer(folder / file, plan) as writer:
            for stored in stored_names:
                writer.write(renamed[stored], value(stored, by_stored.get(stored)))
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
    _write_config(
        folder,
        folder if source.spec.rope else source.weights,
        dtype,
        vocabulary,
        untie=untie,
        scorer=structure.model if scores else None,
    )
    return names if untied is None or embedding is None else {**names, untied: embedding}


def _of_the_class(structure: Structure, head: set[str], reader: Reader, source: Source) -> dict[str, str]:
    """Name of each stored tensor that a reranker keeps -> its name in the class. Left out: what is replaced by its own head, and
    the base's output head."""
    own = structure.model.state_dict()
    found = {stored: name for name in own if (stored := structure.stored_name(name, reader)) is not None}
    generating = Structure.of(source.weights, trust_remote_code=own_code.granted(source.spec))
    others = {generating.stored_name(name, reader) for name in generating.model.state_dict()} - found.keys()
    replaced = {structure.stored_name(name, reader) for name in head}
    return {name: found.get(name, name) for name in reader if name not in others | replaced}


def _quantized(structure: Structure, base_record: BaseRecord | None, reader: Reader) -> dict[str, bool]:
    """Stored name of each weight that was quantized in training -> whether it is stored as [in, out]."""
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
