"""The inputs of merge, average and export: a run, an adapter or model folder, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tailor.artifacts.base_model import base_folder, base_record_of, model_spec, planned_model
from tailor.artifacts.checkpoints import in_one_file, write_adapter
from tailor.artifacts.find import find_artifact, refuse_beacons
from tailor.encode.gguf import WEIGHTS
from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, MODEL_CONFIG, PLAN
from tailor.models.base_record import BaseRecord
from tailor.models.load import DTYPES, save_plain
from tailor.models.own_code import NOTHING, Trust
from tailor.plan import quantized
from tailor.spec.model import Model
from tailor.store import OBJECT, Store, run_files, run_folder
from tailor.store.scratch import scratch
from tailor.train.warm_start import folder_of


@dataclass(frozen=True)
class Source:
    """An adapter with its base, ready to merge."""

    url: str
    folder: Path
    run: Store
    base_record: BaseRecord
    spec: Model
    base: Path
    weights: Path
    """The folder with the base's weights: `base`, or a dequantized copy (`with_plain_weights`)."""


def open_source(url: str, base: str | None = None, trust: Trust = NOTHING) -> Source:
    """Open the adapter of a run, or an adapter folder. base: new path of a base that has moved. trust: the base's own
    code that may run.

    ModelError when there is no adapter, or its base is missing or is another model.
    """
    store, run = find_artifact(Store(url))
    refuse_beacons(store, "merged: they do not change the base's weights")
    if not store.exists(ADAPTER_CONFIG):
        raise ModelError(
            f"{store.url} is a full model: it has no adapter to merge",
            hint="use it as it is, or give a run that trained an adapter",
        )
    folder = store.local_path()
    trained = base_record_of(folder, run)
    base_record = trained if base is None else replace(trained, path=base, revision=None)
    spec = model_spec(base_record, trust)
    try:
        found = base_folder(base_record, store.url, spec)
    except ModelError as error:
        if base is None:
            raise
        raise ModelError(
            f"--base {base}: {error.message.removeprefix(f'the adapter at {store.url} needs its base model {base}: ')}",
            hint=f"give the folder that has {trained.path} now",
        ) from error
    trained.check(
        found, store.url, hint=f"restore the weights of {trained.path}, or give their folder with --base"
    )
    return Source(store.url, folder, run, base_record, spec, found, found)


def stores_plain_weights(base: Path) -> bool:
    """Whether a model's weights are in ordinary safetensors files: neither quantized nor in a `.gguf` file."""
    config = OBJECT.read_path(base / MODEL_CONFIG)
    return quantized.method(config) is None and not (base / WEIGHTS).exists()


def with_plain_weights(source: Source, stack: ExitStack) -> Source:
    """The source with ordinary weights: a dequantized copy if the base's are stored quantized. stack: until when it exists."""
    if stores_plain_weights(source.base):
        return source
    plain = stack.enter_context(scratch())
    save_plain(source.spec, dtype=DTYPES[source.base_record.dtype], folder=plain)
    return replace(source, weights=plain)


NOT_AVERAGED = "each set of beacons was trained on its own compressed windows"


OTHER_ROPE = "{} and {} have different RoPE parameters, so their weights cannot be averaged"


@dataclass(frozen=True)
class AverageInput:
    """One input of an average."""

    url: str
    kind: str
    """`adapter`, `model` or `checkpoint`."""
    folder: Path
    run: Store
    trust: Trust


def open_input(url: str, scratch: Path, stack: ExitStack, trust: Trust = NOTHING) -> AverageInput:
    """Open a run, a model or adapter folder, or a checkpoint of a run. ModelError when it cannot be averaged or exported.

    scratch: path of a temporary folder, created if needed. The result is valid until the stack is closed.
    """
    store = Store(url)
    if run_folder.is_checkpoint(store):
        run = Store(store.url.rstrip("/").rsplit("/", 2)[0])
        joined = scratch.with_name(f"{scratch.name}-joined")
        weights = in_one_file(stack.enter_context(folder_of(store)), joined)
        model = trained_model(store.url, run, trust)
        if run_files.planned_method(run).embedding is not None:
            raise ModelError(
                f"{store.url} is a checkpoint of a run that trains embeddings; only the artifact of the finished run has the "
                "embedding settings",
                hint="give the finished run",
            )
        if model.beacon is not None:
            raise ModelError(
                f"{store.url} has activation beacons, which cannot be averaged: {NOT_AVERAGED}",
                hint="average adapters, or models whose weights were all trained",
            )
        if model.adapter is None:
            return AverageInput(store.url, "checkpoint", weights, run, trust)
        write_adapter(scratch, weights, run, trust)
        return AverageInput(store.url, "adapter", scratch, run, trust)
    found, run = find_artifact(store)
    refuse_beacons(found, f"averaged: {NOT_AVERAGED}")
    kind = "adapter" if found.exists(ADAPTER_CONFIG) else "model"
    return AverageInput(found.url, kind, found.local_path(), run, trust)


def trained_model(url: str, run: Store, trust: Trust) -> Model:
    """The `model` section of the run's plan. ModelError when the checkpoint is not in a run's folder."""
    if not run.exists(PLAN):
        raise ModelError(
            f"{url} is not in a run's folder",
            hint="give it as RUN/checkpoints/step-…, inside its run",
        )
    return planned_model(run, trust)


def same_base(parts: Sequence[AverageInput]) -> list[BaseRecord]:
    """The base-model record of each adapter. ModelError when the adapters have different bases or RoPE parameters."""
    records = [base_record_of(part.folder, part.run) for part in parts]
    for part, base_record in zip(parts[1:], records[1:], strict=True):
        known = records[0].weights is not None and base_record.weights is not None
        if base_record.weights != records[0].weights if known else base_record.path != records[0].path:
            raise ModelError(
                f"{parts[0].url} and {part.url} have different bases: {records[0].path} and {base_record.path}",
                hint="average adapters of one base, or merge each adapter and average the models",
            )
        if base_record.add_tokens != records[0].add_tokens:
            raise ModelError(
                f"{parts[0].url} and {part.url} have different model.add_tokens",
                hint="average adapters with the same tokens",
            )
        if base_record.rope != records[0].rope:
            raise ModelError(
                OTHER_ROPE.format(parts[0].url, part.url), hint="average adapters with the same model.rope"
            )
    return records
