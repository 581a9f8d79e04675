"""`tailor average`: weighted averages of models, checkpoints or adapters of one base.

Models are averaged tensor by tensor in float32. The average of adapters is exact too: the average of the products
B·A is no product of averages, so the factors are put side by side, and the rank is the sum of the ranks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import place
from tailor.artifacts.average_embeddings import average_embeddings
from tailor.artifacts.base import ADAPTER, Structure, held_of
from tailor.artifacts.checkpoints import in_one_file, write_adapter, write_tokenizer
from tailor.artifacts.load import find_artifact, refuse_beacons
from tailor.artifacts.tensors import DTYPES, Reader, Writer, write_index
from tailor.encode.saved import settle
from tailor.errors import ModelError
from tailor.models import files, rope
from tailor.models.held import Held
from tailor.plan import rope as plan_rope
from tailor.spec.model import Model
from tailor.store import Store
from tailor.train import checkpoint
from tailor.train.warm_start import folder_of

RECORD = "average.json"
NOT_AVERAGED = "a low-rank update is a product of factors, and each was trained for windows of its own"
_OTHER_ROPE = "{} and {} have other rotary positions, and weights made for one do not fit the other"


@dataclass(frozen=True)
class Part:
    """One of the things to average."""

    url: str
    kind: str
    """adapter, model or checkpoint."""
    folder: Path
    run: Store


def open_part(url: str, scratch: Path, stack: ExitStack) -> Part:
    """A run, a model or adapter folder, or a checkpoint of a run. ModelError. `scratch`: a folder that may be made.

    What is read lasts as long as the stack.
    """
    store = Store(url)
    if checkpoint.is_one(store):
        run = Store(store.url.rstrip("/").rsplit("/", 2)[0])
        joined = scratch.with_name(f"{scratch.name}-joined")
        weights = in_one_file(stack.enter_context(folder_of(store)), joined)
        model = _trained_model(store.url, run)
        method = run.read_json("plan.json")["method"]
        if method["name"] == "gritlm" and method["mode"] != "generative":
            raise ModelError(
                f"{store.url} is a checkpoint of a run that trains embeddings: how it embeds stands beside its artefact alone",
                mend="name the finished run",
            )
        if model.beacon is not None:
            raise ModelError(
                f"{store.url} holds activation beacons, which cannot be averaged: {NOT_AVERAGED}",
                mend="average adapters, or models that were trained whole",
            )
        if model.adapter is None:
            return Part(store.url, "checkpoint", weights, run)
        write_adapter(scratch, weights, run)
        return Part(store.url, "adapter", scratch, run)
    found, run = find_artifact(store)
    refuse_beacons(found, f"averaged: {NOT_AVERAGED}")
    kind = "adapter" if found.exists(ADAPTER) else "model"
    return Part(found.url, kind, found.local_path(), run)


def average(
    urls: Sequence[str],
    to: str,
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Average what lies at `urls` and publish it at `to`; returns its URL.

    weights: one of each, scaled to a sum of one; equal by default. rank: of averaged adapters, reduced by SVD;
    the error is told. Raises ModelError and StoreError.
    """
    shares = _shares(urls, weights)
    place.check(to, RECORD)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        parts = [open_part(url, Path(scratch) / str(number), stack) for number, url in enumerate(urls)]
        kind = _kind(parts, rank)
        with place.publication(to, RECORD) as made:
            averaged = [{"url": part.url, "weight": share} for part, share in zip(parts, shares, strict=True)]
            record: dict[str, Any] = {"averaged": averaged, "kind": kind}
            if kind == "adapter":
                from tailor.artifacts.average_adapters import average_adapters

                record |= average_adapters(made.folder, parts, shares, rank, say)
            elif kind == "checkpoint":
                average_checkpoints(made.folder, parts, shares)
            else:
                _average_models(made.folder, [part.folder for part in parts], shares)
                place.copy_texts(parts[0].folder, made.folder)
            average_embeddings(
                made.folder, [part.folder for part in parts], [part.url for part in parts], shares
            )
            if (warning := settle(made.folder)) is not None:
                say(f"warning: {warning}")
            (made.folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    for part, share in zip(parts, shares, strict=True):
        say(f"{share:.3g} × {part.url}")
    return made.url


def _kind(parts: Sequence[Part], rank: int | None) -> str:
    """What all the parts are. ModelError when they are not of one kind, or a rank is no use for them."""
    first = parts[0]
    for part in parts:
        if part.kind != first.kind:
            raise ModelError(
                f"{first.url} is {_article(first.kind)} and {part.url} is {_article(part.kind)}",
                mend="average things of one kind; `tailor merge` makes a model of an adapter",
            )
    if rank is not None and first.kind != "adapter":
        raise ModelError(f"--rank is for adapters, and {first.url} is {_article(first.kind)}")
    if rank is not None and rank < 1:
        raise ModelError("--rank must be at least 1")
    return first.kind


def _article(kind: str) -> str:
    return "an adapter" if kind == "adapter" else f"a {kind}"


def _shares(urls: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(urls) < 2:
        raise ModelError("an average needs two or more models, adapters or checkpoints")
    if weights is None:
        return [1 / len(urls)] * len(urls)
    if len(weights) != len(urls):
        raise ModelError(
            f"{len(urls)} things to average, and {len(weights)} weights", mend="give one weight for each"
        )
    if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise ModelError("weights must be finite and 0 or more, and one of them more than 0")
    return [weight / sum(weights) for weight in weights]


def mean(readers: Sequence[Reader], name: str, shares: Sequence[float]) -> torch.Tensor:
    """The weighted mean of one tensor, in float32. Whole numbers must be equal: they are no weights."""
    tensors = [reader.read(name) for reader in readers]
    if not tensors[0].is_floating_point():
        if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
            raise ModelError(f"{name} holds whole numbers that differ, which have no average")
        return tensors[0]
    total = torch.zeros(tensors[0].shape)
    for tensor, share in zip(tensors, shares, strict=True):
        total += tensor.float() * share
    return total


def require_same(readers: Sequence[Reader], urls: Sequence[str]) -> None:
    """ModelError when the files hold other tensors, or tensors of other shapes."""
    first = readers[0]
    for reader, url in zip(readers[1:], urls[1:], strict=True):
        odd = sorted(set(first) ^ set(reader))
        odd += [
            name for name in first if name in reader and first.about(name).shape != reader.about(name).shape
        ]
        if odd:
            shapes = [r.about(odd[0]).shape if odd[0] in r else "missing" for r in (first, reader)]
            raise ModelError(
                f"{urls[0]} and {url} are not of one form: {odd[0]} is {shapes[0]} and {shapes[1]}",
                mend="average models of the same architecture and size",
            )


def _require_same_rope(models: Sequence[Path]) -> None:
    """ModelError when the models' config.json have other rotary parameters."""
    ropes = []
    for model in models:
        config = json.loads((model / files.CONFIG).read_text())
        config = {**config, **(config.get("text_config") or {})}
        own = dict(plan_rope.parameters_of(config))
        theta = own.pop("rope_theta", config.get("rope_theta"))
        kind = own.pop("rope_type", own.pop("type", "default"))
        ropes.append((kind, theta, own))
        if ropes[-1] != ropes[0]:
            raise ModelError(
                _OTHER_ROPE.format(models[0], model), mend="average models of one rope_parameters"
            )


def _average_models(folder: Path, models: Sequence[Path], shares: Sequence[float]) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader.of_model(model)) for model in models]
        require_same(readers, [str(model) for model in models])
        _require_same_rope(models)
        total = 0
        for file, names in readers[0].layout.items():
            plan = {
                name: (DTYPES[readers[0].about(name).dtype], readers[0].about(name).shape) for name in names
            }
            with Writer(folder / file, plan) as writer:
                for name in names:
                    writer.write(name, mean(readers, name, shares).to(plan[name][0]))
            total += writer.bytes
        write_index(folder, readers[0].layout, total)


def average_checkpoints(folder: Path, parts: Sequence[Part], shares: Sequence[float]) -> None:
    """Checkpoints of runs that trained every weight: the result is a model in the base's layout."""
    models = [_trained_model(part.url, part.run) for part in parts]
    if any(model.rope != models[0].rope for model in models):
        raise ModelError(
            _OTHER_ROPE.format(parts[0].url, "others"), mend="average checkpoints of one model.rope"
        )
    if any(model.path != models[0].path or model.revision != models[0].revision for model in models):
        raise ModelError(
            "the checkpoints are of runs with other models: " + ", ".join(sorted({m.path for m in models})),
            mend="average checkpoints of one model",
        )
    base = files.find_folder(
        models[0].path, models[0].revision, trust_remote_code=models[0].trust_remote_code
    )
    write_tokenizer(folder, base, parts[0].run)  # first, since it may refuse
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader([part.folder / checkpoint.WEIGHTS])) for part in parts]
        require_same(readers, [part.url for part in parts])
        trained = {name.removeprefix("network."): name for name in readers[0]}
        frozen, base_reader = _frozen(base, models[0], trained), None
        if frozen:
            base_reader = stack.enter_context(Reader.of_model(base))
        plan = {name: (torch.float32, readers[0].about(own).shape) for name, own in trained.items()}
        for name in frozen:
            assert base_reader is not None
            plan[name] = (DTYPES[base_reader.about(name).dtype], base_reader.about(name).shape)
        with Writer(folder / files.SINGLE, plan) as writer:
            for name, own in trained.items():
                writer.write(name, mean(readers, own, shares))
            for name in frozen:
                assert base_reader is not None
                writer.write(name, base_reader.read(name))
    if models[0].rope is not None:
        rope.save_config(folder, models[0])
    source = folder if models[0].rope is not None else base
    config = {**json.loads((source / files.CONFIG).read_text()), "dtype": "float32"}
    config.pop("torch_dtype", None)
    (folder / files.CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _frozen(base: Path, model: Model, trained: dict[str, str]) -> list[str]:
    """Tensors of the model that its checkpoints leave out, since no text token reaches them."""
    structure = Structure.of(base, trust_remote_code=model.trust_remote_code)
    tied = structure.tied or ()
    return [name for name in structure.model.state_dict() if name not in trained and name not in tied]


def _trained_model(url: str, run: Store) -> Model:
    if not run.exists("plan.json"):
        raise ModelError(
            f"{url} lies in no run's folder",
            mend="name it as RUN/checkpoints/step-…, with the run around it",
        )
    return Model.model_validate(run.read_json("plan.json")["model"])


def same_base(parts: Sequence[Part]) -> list[Held]:
    """How each adapter's base was held. ModelError when they belong to other bases."""
    helds = [held_of(part.folder, part.run) for part in parts]
    for part, held in zip(parts[1:], helds[1:], strict=True):
        known = helds[0].weights is not None and held.weights is not None
        if held.weights != helds[0].weights if known else held.path != helds[0].path:
            raise ModelError(
                f"{parts[0].url} and {part.url} belong to other bases: {helds[0].path} and {held.path}",
                mend="average adapters of one base, or merge each and average the models",
            )
        if held.rope != helds[0].rope:
            raise ModelError(
                _OTHER_ROPE.format(parts[0].url, part.url), mend="average adapters of one model.rope"
            )
    return helds
