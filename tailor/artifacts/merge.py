"""`tailor merge`: merges an adapter into its base, tensor by tensor, and verifies the result.

Every sum is computed in float32 and rounded once. A merge whose logits differ from those of base and adapter by more than
the tolerance is not published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tailor.artifacts import output, verify, verify_embeddings, verify_layers, verify_scores
from tailor.artifacts.base_model import Structure
from tailor.artifacts.inputs import Source, open_source, with_plain_weights
from tailor.artifacts.merged_weights import Onto, write_model
from tailor.artifacts.open_adapter import open_adapter
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import FLOATS, Reader
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
from tailor.models import adapter_files, own_code, scoring_head
from tailor.models.embedding.settings import Embedding
from tailor.models.experts.stacks import stacks
from tailor.models.links import inside
from tailor.models.own_code import NOTHING, Trust
from tailor.plan import encoders
from tailor.store import OBJECT, run_files

Figures = verify.Figures | verify_embeddings.EmbeddingFigures | verify_scores.ScoreFigures
OWN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, "COMMIT", "README.md")
"""Files that only an adapter has. Its other files (tokenizer, template, generation settings) are copied to the model."""


@dataclass(frozen=True)
class Settings:
    """Options of a merge: see `merge`."""

    onto: Onto | None = None
    dtype: str = "auto"
    tolerance: float | None = None
    check: verify.Check | None = None
    """What is compared; None: the embeddings of a model that only embeds, the scores of a reranker, else the logits."""


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
    check = settings.check or _usual_check(source)
    _require_comparable(check, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    structure = Structure.of(
        source.weights,
        trust_remote_code=own_code.granted(source.spec),
        scorer=source.folder if _ranks(source) else None,
    )
    with (
        open_adapter(source.folder, source.url, lambda: stacks(structure.model)) as adapter,
        Reader.of_model(source.weights) as reader,
    ):
        if check != "layers":
            verify.require_memory(reader.weights(), device)
        names = write_model(folder, source, structure, adapter, reader, onto, settings.dtype, device)
        for line in copy_files(folder, source):
            say(line)
        measures: dict[str, Callable[..., Figures]] = {
            "logits": verify.by_logits,
            "layers": verify_layers.by_layers,
            "embeddings": verify_embeddings.by_embeddings,
            "scores": verify_scores.by_scores,
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


def _usual_check(source: Source) -> verify.Check:
    """What is compared by default."""
    if _ranks(source):
        return "scores"
    encoder = encoders.is_encoder(OBJECT.read_path(source.base / MODEL_CONFIG))
    return "embeddings" if encoder or run_files.only_embeds(source.run) else "logits"


def _require_comparable(check: verify.Check, source: Source) -> None:
    """ModelError when the model does not have what is to be compared."""
    if _ranks(source) != (check == "scores") and check != "layers":
        what, instead = ("a", "scores") if _ranks(source) else ("no", _usual_check(source))
        raise ModelError(
            f"{source.url} is {what} reranker, and --verify {check} compares {check}",
            hint=f"use --verify {instead}",
        )
    if check == "logits" and encoders.is_encoder(OBJECT.read_path(source.base / MODEL_CONFIG)):
        raise verify.no_logits(source.base_record.path, "embeddings")
    if check == "embeddings":
        Embedding.read(source.folder, source.url)


def _ranks(source: Source) -> bool:
    return scoring_head.is_adapter(adapter_files.read_config(source.folder))


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


def is_text(path: Path) -> bool:
    """Whether a file of a model folder is a configuration, of the tokenizer or a template: no weights."""
    return path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json")


def copy_files(folder: Path, source: Source) -> list[str]:
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
            published = (MODULES, SENTENCE_BERT, SENTENCE_TRANSFORMERS)
            others = (*OWN, MODEL_CONFIG, EMBEDDING, GENERATIVE_ATTENTION, *published, *but)
            if is_text(path) and path.name not in others:
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
