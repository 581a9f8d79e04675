"""`tailor runs`: list the runs in a folder."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from typing import TYPE_CHECKING

from tailor.cli.output import Document, Failure, Output, failure_of
from tailor.cli.terminal import make_console
from tailor.errors import StoreError, TailorError
from tailor.runs.log import of_kind, read
from tailor.runs.status import Status, state_of, step_of
from tailor.store import Store, run_files, run_folder

if TYPE_CHECKING:
    from rich.text import Text

DAMAGED = "damaged"
"""State of a run with a file that cannot be read."""
COLORS = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
    DAMAGED: "red",
}


class ListedRun(Document):
    """A run. Values that it does not have yet are null; of a damaged run, everything but its name and `error` is."""

    run: str
    """Path below the folder."""
    url: str
    state: str
    """`running`, `finished`, `failed`, `interrupted`, `stopped` (killed), `unknown` or `damaged`."""
    step: int | None
    steps: int | None
    loss: float | None
    """Training loss of the last step."""
    evaluation_loss: float | None
    method: str | None
    model: str | None
    started: str | None
    """ISO 8601."""
    error: Failure | None
    """Why its files cannot be read."""


class ListedRuns(Document):
    """The runs in a folder and in its subfolders, by path."""

    folder: str
    runs: list[ListedRun]


OUTPUT = Output(ListedRuns)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="folder to search for runs (default: runs)")


def execute(args: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    store = Store(args.folder)
    if not store.exists():
        raise StoreError(
            f"there is no folder {store.url}", hint="name the folder that contains your runs (their save.to)"
        )
    found = [store] if run_folder.holds_run(store) else run_folder.below(store)
    if args.json:
        args.json.write(ListedRuns(folder=store.url, runs=[_listed(run, store) for run in found]))
        return 0
    console = make_console()
    if not found:
        console.print(f"no runs in {store.url}")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("run", "state", "step", "loss", "evaluation", "method", "model", "started"):
        table.add_column(
            head, justify="right" if head in ("step", "loss", "evaluation") else "left", no_wrap=True
        )
    damaged: list[TailorError] = []
    for run in found:
        try:
            table.add_row(*_row(run, store))
        except TailorError as error:
            table.add_row(_name(run, store), Text(DAMAGED, COLORS[DAMAGED]))
            damaged.append(error)
    if not console.is_terminal:
        console.width = 10_000  # never truncate lines in a pipe
    console.print(table)
    for error in damaged:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"tailor: {error.message}{hint}", file=sys.stderr)
    return 0


def _listed(run: Store, below: Store) -> ListedRun:
    nothing = dict.fromkeys(ListedRun.model_fields)
    try:
        status, plan, records = Status.read(run), run_files.plan_if_written(run), read(run)
        train, evaluation = of_kind(records, "train"), of_kind(records, "evaluation")
        values = {
            "state": state_of(run, status),
            "step": step_of(status, records) if status else None,
            "steps": status.steps if status else None,
            "loss": train[-1]["loss"] if train else None,
            "evaluation_loss": evaluation[-1]["loss"] if evaluation else None,
            "method": plan["method"]["name"] if plan else None,
            "model": plan["model"]["path"] if plan else None,
            "started": status.started if status else None,
        }
    except TailorError as error:
        values = {"state": DAMAGED, "error": failure_of(error)}
    return ListedRun.model_validate({**nothing, "run": _name(run, below), "url": run.url, **values})


def _row(run: Store, below: Store) -> list[str | Text]:
    from rich.text import Text

    from tailor.runs.report.page import method_words

    status, plan, records = Status.read(run), run_files.plan_if_written(run), read(run)
    train, evaluation = of_kind(records, "train"), of_kind(records, "evaluation")
    state = state_of(run, status)
    return [
        _name(run, below),
        Text(state, COLORS.get(state, "")),
        f"{step_of(status, records)}/{status.steps}" if status else "",
        _loss(train[-1]["loss"]) if train else "",
        _loss(evaluation[-1]["loss"]) if evaluation else "",
        method_words(plan) if plan else "",
        plan["model"]["path"].rstrip("/").rsplit("/", 1)[-1] if plan else "",
        _when(status.started) if status else "",
    ]


def _name(run: Store, below: Store) -> str:
    name = run.url.removeprefix(below.url.rstrip("/") + "/")
    return name if name != run.url else run_folder.name(run)


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _when(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
