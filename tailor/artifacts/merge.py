"""`tailor merge`: merges an adapter into its base, tensor by tensor, and verifies the result.

Every sum is computed in float32 and rounded once. A merge whose logits differ from those of base and adapter by more than
the tolerance is not published.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts import output, verify, verify_embeddings
from tailor.artifacts.base_model import Structure, as_quantized, forget_quantization, set_vocabulary
from tailor.artifacts.inputs import Source, open_source, with_plain_weights
from tailor.artifacts.open_adapter import open_adapter
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import DTYPES as STORED
from tailor.artifacts.tensors import FLOATS, Reader, Writer, write_index
from tailor.encode.gguf import WEIGHTS
from tailor.encode.tokenizer_files import fix_tokenizer_class, own_files
from tailor.errors import ModelError
from tailor.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    EMBEDDING,
    GENERATIVE_ATTENTION,
    MERGE_RECORD,
    MERGED,
    MODEL_CONFIG,
    MODULES,
    PROJECTION,
    RECIPE,
    SENTENCE_BERT,
    SENTENCE_TRANSFORMERS,
)
from tailor.models import own_code, rope
from tailor.models.base_record import BaseRecord
from tailor.models.embedding.settings import Embedding
from tailor.models.links import inside
from tailor.models.load import DTYPES
from tailor.models.own_code import NOTHING, Trust
from tailor.plan import encoders
from tailor.store import OBJECT, run_files

Onto = Literal["full", "dequantized"]
Figures = verify.Figures | verify_embeddings.EmbeddingFigures
OWN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, "COMMIT", "README.md")
"""Files that only an adapter has. Its other files (tokenizer, template, generation settings) are copied to the model."""


@dataclass(frozen=True)
class Settings:
    """Options of a merge: see `merge`."""

    onto: Onto | None = None
    dtype: str = "auto"
    tolerance: float | None = None
    check: verify.Check | None = None
    """What is compared; None: the embeddings of a model that only embeds, else the logits."""


@dataclass(frozen=True)
class Merged:
    """A published merge, and its verification."""

    url: str
    figures: Figures


def merge(
    url: str,
    to: str | None = None,
    *,
    onto: Onto | None = None,
    dtype: str = "auto",
    base: str | None = None,
    tolerance: float | None = None,
    check: verify.Check | None = None,
    trust: Trust = NOTHING,
    say: Callable[[str], None] = lambda _: None,
) -> Merged:
    """Merge the adapter at `url` and publish the model at `to` (by default the folder `merged` of the run).

    onto: merge into the base's stored weights (`full`), or into its quantized and dequantized weights (`dequantized`, the
    default after training on a quantized base, because the adapter was trained on those).
    dtype: of the result; `auto` keeps the dtype of each tensor. base: new path of a base that has moved. tolerance: see
    `verify.Figures.limit`. check: see `Settings`; `layers` compares only sampled layers. trust: the base's own code that may
    run. Raises ModelError and StoreError.
    """
    source = open_source(url, base, trust)
    if to is None and not source.run.exists(RECIPE):
        raise ModelError(f"{source.url} is not in a run's folder", hint="give the output folder with --to")
    target = source.run.join(MERGED).url if to is None else to
    output.check(target, MERGE_RECORD)
    settings = Settings(onto, dtype, tolerance, check)
    with output.publication(target, MERGE_RECORD) as made:
        figures = merge_into(made.folder, source, settings, say)
    return Merged(made.url, figures)


def merge_into(
    folder: Path, source: Source, settings: Settings, say: Callable[[str], None] = lambda _: None
) -> Figures:
    """Write the merged model and its record into `folder`. ModelError when it fails verification."""
    with ExitStack() as stack:
        return _merge_into(folder, with_plain_weights(source, stack), settings, say)


def _merge_into(folder: Path, source: Source, settings: Settings, say: Callable[[str], None]) -> Figures:
    onto = _onto(settings.onto, source)
    encoder = encoders.is_encoder(OBJECT.read_path(source.base / MODEL_CONFIG))
    only_embeds = encoder or run_files.only_embeds(source.run)
    check = settings.check or ("embeddings" if only_embeds else "logits")
    if encoder and check == "logits":
        raise verify.no_logits(source.base_record.path, "embeddings")
    if check == "embeddings":
        Embedding.read(source.folder, source.url)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with (
        open_adapter(source.folder, source.url) as adapter,
        Reader.of_model(source.weights) as reader,
    ):
        if check != "layers":
            verify.require_memory(reader.weights(), device)
        names = write_model(folder, source, adapter, reader, onto, settings.dtype, device)
        for line in _copy_files(folder, source):
            say(line)
        measures: dict[str, Callable[..., Figures]] = {
            "logits": verify.by_logits,
            "layers": verify.by_layers,
            "embeddings": verify_embeddings.by_embeddings,
        }
        figures = measures[check](folder, source, adapter, names, device)
        say(
            f"merged {len(adapter.updates)} {adapter.kind.label} updates into the base ({_onto_words(onto, source, reader)})"
        )
        for line in figures.lines():
            say(line)
        if (reason := figures.refusal(settings.tolerance)) is not None:
            raise ModelError(
                f"the merge of {source.url} fails verification: {reason}",
                hint=_hint(source, onto, settings.dtype),
            )
        if (warning := fix_tokenizer_class(folder)) is not None:
            say(f"warning: {warning}")
        _record(folder, source, onto, settings, figures, adapter)
    return figures


def _onto_words(onto: Onto, source: Source, reader: Reader) -> str:
    """The weights of the base that the adapter was merged into, for the user."""
    quantize = source.base_record.quantize
    if onto == "dequantized" and quantize is not None:
        return f"{quantize.type} as in training, dequantized"
    dtypes = {reader.about(name).dtype for name in reader} & set(FLOATS)
    return " and ".join(sorted(dtypes)).lower()


def _onto(onto: Onto | None, source: Source) -> Onto:
    quantized = source.base_record.quantize is not None
    if onto == "dequantized" and not quantized:
        raise ModelError(
            f"--onto dequantized has no effect: {source.url} was not trained on a quantized base"
        )
    return onto or ("dequantized" if quantized else "full")


def _hint(source: Source, onto: Onto, dtype: str) -> str:
    if onto == "full" and source.base_record.quantize is not None:
        return "merge into the quantized weights of training (--onto dequantized), or allow the difference with --tolerance"
    if dtype != "float32":
        return "avoid rounding with --dtype float32, or allow the difference with --tolerance"
    return "the base must be the model that the adapter was trained on, in the same precision"


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
    structure = Structure.of(source.weights, trust_remote_code=own_code.granted(source.spec))
    tied = structure.tied
    names = {
        name: stored
        for name in adapter.changed()
        if (stored := structure.stored_name(name, reader)) is not None
    }
    # Trained rows of a tied embedding are those of the head too.
    untie = tied is not None and bool(set(tied) & (set(adapter.changed()) - set(adapter.rows)))
    embedding = structure.stored_name(tied[0], reader) if tied is not None else None
    untied = (
        tied[1] if untie and tied is not None and structure.stored_name(tied[1], reader) is None else None
    )
    missing = [name for name in adapter.changed() if name not in names and name != untied]
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
    for number, (file, stored_names) in enumerate(reader.layout.items()):
        plan = {name: (_dtype(reader, name, dtype), shape(name)) for name in stored_names}
        extra = (
            untied if number == 0 else None
        )  # the head: tied to the embedding in the base, separate after the merge
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
    vocabulary = max((shape(stored)[0] for stored in grown), default=None)
    _write_config(folder, folder if source.spec.rope else source.weights, dtype, vocabulary, untie=untie)
    return names if untied is None or embedding is None else {**names, untied: embedding}


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


def _write_config(folder: Path, base: Path, dtype: str, vocabulary: int | None, *, untie: bool) -> None:
    config: dict[str, Any] = OBJECT.read_path(base / MODEL_CONFIG)
    forget_quantization(config)
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


def _copy_files(folder: Path, source: Source) -> list[str]:
    """Copy tokenizer, template and generation settings: those of the adapter, else those of the base.

    Returns a line about each link that leaves its folder, which is not copied.
    """
    skipped: list[str] = []
    for pattern in ("*.py", "LICENSE*", "NOTICE*"):
        for path in inside(sorted(source.base.glob(pattern)), source.base, skipped):
            shutil.copyfile(path, folder / path.name)
    of_adapter = own_files(source.folder)
    for origin, but in ((source.base, of_adapter), (source.folder, ())):
        found = sorted(path for path in origin.iterdir() if path.name != WEIGHTS)
        for path in inside(found, origin, skipped):
            weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
            text = path.suffix in (".json", ".jinja", ".model", ".txt")
            published = (MODULES, SENTENCE_BERT, SENTENCE_TRANSFORMERS)
            others = (*OWN, MODEL_CONFIG, EMBEDDING, GENERATIVE_ATTENTION, *published, *but)
            if text and not weights and path.name not in others:
                shutil.copyfile(path, folder / path.name)
    # The base's embedding settings do not apply after training: only the adapter's are copied.
    for name in (EMBEDDING, PROJECTION, GENERATIVE_ATTENTION):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    return list(dict.fromkeys(skipped))


def _record(
    folder: Path,
    source: Source,
    onto: Onto,
    settings: Settings,
    figures: Figures,
    adapter: SavedAdapter,
) -> None:
    base_record = source.base_record
    values = {
        "adapter": source.url,
        "base": base_record.path,
        "base_weights": base_record.weights
        or "unknown: the adapter has no record of the weights that it was trained on",
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
    (folder / MERGE_RECORD).write_text(output.RECORD_FILE.text(values))
