"""`tailor export`: a folder of a run's weights that other programs read, with its model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tailor.artifacts import output
from tailor.artifacts.consolidate import consolidate
from tailor.artifacts.inputs import open_source
from tailor.artifacts.load import refuse_beacons
from tailor.artifacts.merge import Settings, merge_into
from tailor.encode.tokenizer_files import settle
from tailor.errors import ModelError, StoreError
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.export.card import card
from tailor.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    ARTIFACTS,
    BASE_RECORD,
    EXPORT_RECORD,
    LOSS_PLOT,
    MERGE_RECORD,
    MODEL_CONFIG,
    PLAN,
    STATE,
)
from tailor.runs.log import read
from tailor.store import COMMIT, Store
from tailor.store import run_folder as runs

Form = Literal["huggingface", "sentence-transformers", "ollama"]
Weights = Literal["adapter", "merged", "model"]


@dataclass(frozen=True)
class Request:
    """What to export of a run."""

    form: Form = "huggingface"
    weights: Weights | None = None
    """By default the run's artefact as it is; for Ollama and sentence-transformers an adapter is merged."""
    base: str | None = None
    """Where the base is now, when it has moved."""
    base_id: str | None = None
    """The base's id on the hub, for the card and for those who load the adapter."""
    merging: Settings = field(default_factory=Settings)
    name: str | None = None
    """The model's name in its card; the run's by default."""
    query_instruction: str | None = None
    """Of the prompt `query` for sentence-transformers."""


def finished(url: str) -> tuple[Store, str]:
    """A run with its artefact, and the artefact's name. StoreError for another folder or an unfinished run."""
    run = runs.find(url)
    kind = next((kind for kind in ARTIFACTS if run.is_committed(kind)), None)
    if kind is None:
        raise StoreError(
            f"the run at {run.url} is not finished: it has neither adapter/ nor model/",
            mend="run its recipe again, which goes on from the last checkpoint",
        )
    return run, kind


def export(url: str, to: str, request: Request, say: Callable[[str], None] = lambda _: None) -> str:
    """Write the folder and publish it at `to`; returns its URL. Raises ModelError and StoreError."""
    output.check(to, EXPORT_RECORD)
    with tempfile.TemporaryDirectory() as scratch:
        source: Path | None = None
        step: int | None = None
        if runs.is_checkpoint(Store(url)):
            source = Path(scratch) / "weights"
            kind, run = consolidate(url, source)
            step = int(Store(url).read_json(STATE)["step"])
            if request.weights == "merged" or request.form != "huggingface":
                raise ModelError(
                    f"{url} is a checkpoint, which is exported as it was trained",
                    mend="export it without --weights and --as, then `tailor merge` the folder",
                )
        else:
            run, kind = finished(url)
        chosen = choose(request, kind, run)
        if request.form == "sentence-transformers":
            require_embeddings(run.join(kind).url)
        with output.publication(to, EXPORT_RECORD) as made:
            fill(made.folder, run, chosen, request, say, source, step)
    return made.url


def choose(request: Request, kind: str, run: Store) -> Weights:
    """Which weights to export. ModelError for those that the run has not."""
    refuse_beacons(run.join(kind), "exported: no other tool reads them")
    possible: tuple[Weights, ...] = ("adapter", "merged") if kind == "adapter" else ("model",)
    whole = request.form != "huggingface" and kind == "adapter"
    chosen = request.weights or ("merged" if whole else possible[0])
    if request.form == "sentence-transformers" and chosen == "adapter":
        raise ModelError(
            "sentence-transformers gets a whole model: its decoder reads in both directions, which an adapter cannot say",
            mend="leave --weights away",
        )
    if chosen not in possible:
        raise ModelError(
            f"the run at {run.url} has no {chosen}: it trained {'an adapter' if kind == 'adapter' else 'every weight'}",
            mend=f"give --weights {' or '.join(possible)}",
        )
    if chosen != "merged" and (idle := _of_a_merge(request, reads_base=request.form == "ollama")):
        raise ModelError(
            f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect: the {chosen} goes out as it is",
            mend=f"leave {'it' if len(idle) == 1 else 'them'} out"
            + (", or give --weights merged" if kind == "adapter" else ""),
        )
    return chosen


def _of_a_merge(request: Request, *, reads_base: bool) -> list[str]:
    """The options that were given and say how to merge."""
    given, usual = request.merging, Settings()
    names = {"--onto": "onto", "--dtype": "dtype", "--tolerance": "tolerance", "--verify": "check"}
    found = [option for option, name in names.items() if getattr(given, name) != getattr(usual, name)]
    return found + (["--base"] if request.base is not None and not reads_base else [])


def fill(
    folder: Path,
    run: Store,
    weights: Weights,
    request: Request,
    say: Callable[[str], None] = lambda _: None,
    source: Path | None = None,
    step: int | None = None,
) -> None:
    """Write everything that is exported into an empty folder: weights, tokenizer, card, curve, and what the form needs.

    source, step: a folder of the weights of a checkpoint, and its step; the run's artefact by default.
    """
    if weights == "merged":
        merge_into(folder, open_source(run.url, request.base), request.merging, say)
    else:
        source = source or run.join(weights).local_path()
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in (COMMIT, "README.md"):
                shutil.copyfile(path, folder / path.name)
        if (warning := settle(folder)) is not None:
            say(f"warning: {warning}")
    if request.form == "sentence-transformers":
        from tailor.export import sentence_transformers

        sentence_transformers.write(folder, query_instruction=request.query_instruction)
    base = _public_base(folder, run, request)
    if (folder / MERGE_RECORD).is_file():  # paths of this machine are nobody else's
        values = json.loads((folder / MERGE_RECORD).read_text())
        values |= {"adapter": f"{runs.name(run)}/{ADAPTER}", "base": base or Path(values["base"]).name}
        (folder / MERGE_RECORD).write_text(json.dumps(values, indent=1) + "\n")
    record: dict[str, Any] = {"run": runs.name(run), "as": request.form, "weights": weights, "base": base}
    (folder / EXPORT_RECORD).write_text(json.dumps(record, indent=1) + "\n")
    if request.form == "ollama":
        for note in _modelfile(folder, run, weights, request):
            say(f"note: {note}")
    curve = _curve(run)
    if curve is not None:
        (folder / LOSS_PLOT).write_bytes(curve)
    name = request.name or runs.name(run)
    text = card(run, folder, weights, base=base, name=name, curve=curve is not None, step=step)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _modelfile(folder: Path, run: Store, weights: Weights, request: Request) -> list[str]:
    from tailor.export.ollama import write_modelfile

    plan = runs.read_json(run, PLAN)
    if weights == "adapter":
        source = open_source(run.url, request.base)
        if source.held.rope is not None:
            raise ModelError(
                "Ollama does not import this adapter: it would read the base without the rotary positions of model.rope",
                mend="export the merged model: --weights merged",
            )
        config = json.loads((source.base / MODEL_CONFIG).read_text())
        base: str | None = str(source.base.absolute())
    else:
        config, base = json.loads((folder / MODEL_CONFIG).read_text()), None
    return write_modelfile(folder, base=base, config=config, max_length=int(plan["max_length"]))


def _public_base(folder: Path, run: Store, request: Request) -> str | None:
    """The base's id on the hub, written into the adapter's configuration; None where it is known only as a folder."""
    path = str(runs.read_json(run, PLAN)["model"]["path"])
    public = request.base_id or (
        None if "://" in path or Path(path).exists() or path.startswith("/") else path
    )
    if public is not None:
        for name, key in ((ADAPTER_CONFIG, "base_model_name_or_path"), (BASE_RECORD, "path")):
            if (folder / name).is_file():
                values = {**json.loads((folder / name).read_text()), key: public}
                (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    return public


def _curve(run: Store) -> bytes | None:
    if run.exists(LOSS_PLOT):
        return run.read_bytes(LOSS_PLOT)
    from tailor.runs.report.plots import draw

    return next((plot.png for plot in draw(read(run)) if plot.file == LOSS_PLOT), None)
