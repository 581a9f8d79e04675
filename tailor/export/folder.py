"""`tailor export`: writes the weights of a run as a folder that other programs can load, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailor.artifacts import output
from tailor.artifacts.consolidate import consolidate
from tailor.artifacts.find import refuse_beacons
from tailor.artifacts.merge import Settings, merge_into
from tailor.encode.tokenizer_files import fix_tokenizer_class
from tailor.errors import ModelError, StoreError
from tailor.export.card import card
from tailor.export.engines import verdicts
from tailor.export.forms import check_options, find_form
from tailor.export.request import Request, Selection, Weights
from tailor.layout import ADAPTER, ARTIFACTS, EXPORT_RECORD, LOSS_PLOT, MERGE_RECORD, STATE
from tailor.models import adapter_files
from tailor.models.links import inside
from tailor.runs.log import read
from tailor.store import COMMIT, Store, run_files
from tailor.store import run_folder as runs
from tailor.store.scratch import scratch
from tailor.train.checkpoint import STATE_FILE


def finished(url: str) -> tuple[Store, str]:
    """Open a finished run. Returns the run, and `adapter` or `model`. StoreError for other folders and unfinished runs."""
    run = runs.find(url)
    kind = next((kind for kind in ARTIFACTS if run.is_committed(kind)), None)
    if kind is None:
        raise StoreError(
            f"the run at {run.url} is not finished: it has neither adapter/ nor model/",
            hint="run its recipe again: it resumes from the last checkpoint",
        )
    return run, kind


def export(url: str, to: str, request: Request, say: Callable[[str], None] = lambda _: None) -> str:
    """Export the run or checkpoint at `url` to the folder `to`. Returns its URL. Raises ModelError and StoreError."""
    check_options(request.form, request.form_options)
    output.check(to, EXPORT_RECORD)
    with scratch() as temporary:
        source: Path | None = None
        step: int | None = None
        if runs.is_checkpoint(Store(url)):
            source = temporary / "weights"
            kind, run = consolidate(url, source, request.trust)
            step = int(STATE_FILE.read(Store(url), STATE)["step"])
            if request.weights == "merged" or not find_form(request.form).takes_checkpoints:
                raise ModelError(
                    f"{url} is a checkpoint: it can be exported neither merged nor with --as {request.form}"
                    if not find_form(request.form).takes_checkpoints
                    else f"{url} is a checkpoint: it cannot be exported merged",
                    hint="export it without --weights and --as, then merge the folder with `tailor merge`",
                )
        else:
            run, kind = finished(url)
        selection = select(request, kind, run, merges=source is None)
        announce(selection, say)
        with output.publication(to, EXPORT_RECORD) as made:
            fill(made.folder, selection, say, source, step)
    return made.url


def select(request: Request, kind: str, run: Store, *, merges: bool = True) -> Selection:
    """Choose and check the weights to export. ModelError when the run does not have them or the form does not take them.

    kind: `adapter` or `model`, what the run trained. merges: whether an adapter can be merged (false for checkpoints).
    """
    refuse_beacons(run.join(kind), "exported: no other tool can load them")
    form = find_form(request.form)
    possible: tuple[Weights, ...] = (
        ("model",) if kind == "model" else ("adapter", "merged") if merges else ("adapter",)
    )
    default = next((one for one in form.weights if one in possible), possible[0])
    chosen = request.weights or default
    if chosen not in form.weights:
        raise ModelError(
            form.refusal(chosen),
            hint="remove --weights" if request.weights else "choose another form with --as",
        )
    if chosen not in possible:
        raise ModelError(
            f"--weights {chosen}: the run at {run.url} trained {'an adapter' if kind == 'adapter' else 'a full model'}",
            hint=f"give --weights {' or '.join(possible)}",
        )
    if chosen != "merged" and (unused := _of_a_merge(request, reads_base=form.reads_base)):
        raise ModelError(
            f"{' and '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect: the {chosen} is exported unmerged",
            hint=f"remove {'it' if len(unused) == 1 else 'them'}"
            + (", or give --weights merged" if kind == "adapter" else ""),
        )
    selection = Selection(run, chosen, request)
    form.check(selection)
    return selection


def announce(selection: Selection, say: Callable[[str], None]) -> None:
    """Report the engines that cannot serve the selected weights, before they are merged or uploaded."""
    if not find_form(selection.request.form).for_several_engines:
        return
    for verdict in verdicts(selection.run, merged=selection.weights == "merged"):
        if verdict.refused:
            say(f"note: {verdict.line}")


def _of_a_merge(request: Request, *, reads_base: bool) -> list[str]:
    """The given options that only affect a merge."""
    given, usual = request.merging, Settings()
    names = {"--onto": "onto", "--dtype": "dtype", "--tolerance": "tolerance", "--verify": "check"}
    found = [option for option, name in names.items() if getattr(given, name) != getattr(usual, name)]
    return found + (["--base"] if request.base is not None and not reads_base else [])


def fill(
    folder: Path,
    selection: Selection,
    say: Callable[[str], None] = lambda _: None,
    source: Path | None = None,
    step: int | None = None,
) -> None:
    """Write the export into an empty folder: weights, tokenizer, files of the form, loss plot and model card.

    source, step: the folder with the weights of a checkpoint, and its step; None for the run's artifact.
    """
    run, request, form = selection.run, selection.request, find_form(selection.request.form)
    _write_weights(folder, selection, say, source)
    base = public_base(run, request)
    if base is not None:
        adapter_files.set_base(folder, base)
    _record(folder, selection, base)
    for note in form.write(folder, selection):
        say(f"note: {note}")
    curve = _curve(run)
    if curve is not None:
        (folder / LOSS_PLOT).write_bytes(curve)
    text = card(
        run,
        folder,
        selection.weights,
        base=base,
        name=request.name or runs.name(run),
        curve=curve is not None,
        step=step,
        section=form.card(folder),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_weights(
    folder: Path, selection: Selection, say: Callable[[str], None], source: Path | None
) -> None:
    """Write the weights and the tokenizer, merged or copied."""
    if selection.weights == "merged":
        merge_into(folder, selection.source, selection.request.merging, say)
        return
    origin, skipped = source or selection.artifact.local_path(), list[str]()
    for path in inside(sorted(origin.iterdir()), origin, skipped):
        if path.name not in (COMMIT, "README.md"):
            shutil.copyfile(path, folder / path.name)
    for line in skipped:
        say(line)
    if (warning := fix_tokenizer_class(folder)) is not None:
        say(f"warning: {warning}")


def _record(folder: Path, selection: Selection, base: str | None) -> None:
    """Write export.json. In the record of a merge, local paths are replaced by public names."""
    name = runs.name(selection.run)
    if (folder / MERGE_RECORD).is_file():
        values = output.RECORD_FILE.read_path(folder / MERGE_RECORD)
        values |= {"adapter": f"{name}/{ADAPTER}", "base": base or Path(values["base"]).name}
        (folder / MERGE_RECORD).write_text(output.RECORD_FILE.text(values))
    record: dict[str, Any] = {
        "run": name,
        "as": selection.request.form,
        "weights": selection.weights,
        "base": base,
    }
    (folder / EXPORT_RECORD).write_text(output.RECORD_FILE.text(record))


def public_base(run: Store, request: Request) -> str | None:
    """The base's id on the hub; None for a local base without an id."""
    path = str(run_files.plan(run)["model"]["path"])
    return request.base_id or (None if "://" in path or Path(path).exists() or path.startswith("/") else path)


def _curve(run: Store) -> bytes | None:
    """The loss plot as PNG; None when the run logged no loss."""
    if run.exists(LOSS_PLOT):
        return run.read_bytes(LOSS_PLOT)
    from tailor.runs.report.plots import draw

    return next((plot.png for plot in draw(read(run)) if plot.file == LOSS_PLOT), None)
