"""`tailor show`: show the settings, results and loss curve of a run."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tailor.cli.numbers import whole
from tailor.cli.output import Document, Output, Raw
from tailor.cli.terminal import make_console
from tailor.layout import CHECKPOINTS
from tailor.runs.evaluations import Results
from tailor.runs.log import Record, of_kind, read
from tailor.runs.status import Status, state_of, step_of
from tailor.runs.words import duration, number
from tailor.store import run_files, run_folder

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tailor.store import Store


class SavedCheckpoint(Document):
    """A complete checkpoint."""

    step: int
    url: str


class Engine(Document):
    """Whether an inference engine serves the artifact as it was trained."""

    engine: str
    serves: bool
    reasons: list[str]
    """What it refuses or ignores."""
    command: str | None
    """Serves the artifact, or makes it servable."""


class Shown(Document):
    """A run. What it has not written yet is null or empty."""

    run: str
    """Path or URL of the run folder."""
    state: str
    """`running`, `finished`, `failed`, `interrupted`, `stopped` (killed) or `unknown`."""
    step: int | None
    status: Raw[Status] | None
    """The content of `status.json`."""
    summary: dict[str, str]
    """The first lines of the text that is printed without `--json`."""
    plan: dict[str, Any] | None
    """The content of `plan.json`."""
    data: dict[str, Any] | None
    """The content of `data.json`."""
    checkpoints: list[SavedCheckpoint]
    artifact: str | None
    engines: list[Engine]
    """Of an artifact that generates text."""
    last: dict[str, Raw[dict[str, Any]]]
    """The last record of each kind in `metrics.jsonl`."""
    evaluations: dict[str, Raw[Results]]
    """Name -> the content of its `results.json`."""
    answers: list[Raw[dict[str, Any]]]
    """The first generated answers (`--samples`), before and after training."""
    files: list[str]
    """The report page and plots."""


OUTPUT = Output(Shown)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder")
    parser.add_argument(
        "--samples",
        type=whole(0),
        default=5,
        metavar="N",
        help="number of generated answers to print (default 5)",
    )


def execute(args: argparse.Namespace) -> int:
    from rich.text import Text

    from tailor.runs.report.page import summary

    run = run_folder.find(args.run)
    records, status = read(run), Status.read(run)
    if args.json:
        args.json.write(_document(run, records, status, args.samples))
        return 0
    console = make_console(soft_wrap=True)
    console.print(Text(shown_path(run.url), "bold"))
    for label, figure in [*summary(run, records), *_details(run)]:
        console.print(Text.assemble((f"{label:<17}", "dim"), figure))
    if status is not None and status.error:
        console.print(Text(f"{'Error':<17}{status.error}", "red"))
    if status is not None and status.timings:
        parts = ", ".join(f"{part.replace('_', ' ')} {duration(s)}" for part, s in status.timings.items())
        console.print(Text.assemble((f"{'Start-up':<17}", "dim"), parts))
    console.print(curve(records, console))
    if args.samples:
        console.print(sample_answers(run, args.samples))
    for command in next_commands(run)[:1] if run_folder.artifact(run) else []:
        console.print(Text.assemble(("next  ", "dim"), (command, "cyan")))
    return 0


def _document(run: Store, records: list[Record], status: Status | None, samples: int) -> Shown:
    from tailor.export.engines import verdicts
    from tailor.runs import evaluations
    from tailor.runs.report.page import paired_answers, summary

    kind = run_folder.artifact(run)
    return Shown(
        run=run.url,
        state=state_of(run, status),
        step=step_of(status, records) if status else None,
        status=asdict(status) if status else None,
        summary=dict(summary(run, records)),
        plan=run_files.plan_if_written(run) or None,
        data=run_files.data_report(run) or None,
        checkpoints=[
            SavedCheckpoint(step=run_folder.step_of(name), url=run.join(CHECKPOINTS, name).url)
            for name in run_folder.checkpoints(run)
        ],
        artifact=run.join(kind).url if kind else None,
        engines=[Engine(**vars(one)) for one in verdicts(run)],
        last={record["kind"]: record for record in records},
        evaluations={name: evaluations.read(run, name) for name in evaluations.names(run)},
        answers=paired_answers(run)[:samples],
        files=_page_files(run),
    )


def _page_files(run: Store) -> list[str]:
    return [name for name in run.names() if name.endswith((".png", ".html"))]


def _details(run: Store) -> list[tuple[str, str]]:
    from tailor.export.engines import verdicts

    plan, data = run_files.plan_if_written(run), run_files.data_report(run)
    rows = []
    if plan:
        streams = run_files.planned_method(run).streams
        batch = (
            streams.describe()
            if streams is not None
            else f"{plan['batch_tokens']} tokens"
            if plan["batch_tokens"]
            else f"{plan['batch_size']} sequences"
        )
        parallel = plan.get("sequence_parallel", 1)
        workers = "workers" if parallel == 1 else f"groups of {parallel} workers"
        rows.append(
            (
                "Batch",
                (
                    f"{batch} of at most {plan['max_length']} tokens: {plan['workers'] // parallel} × "
                    f"{plan['accumulation']} × {plan['micro_batch_size']} ({workers} × accumulation × micro-batch), "
                    f"{plan['precision']}"
                ),
            )
        )
        rows.append(
            (
                "Data",
                (
                    f"{number(plan['tokens_per_epoch'])} tokens per epoch, "
                    f"{number(plan['supervised_tokens_per_epoch'])} supervised, {plan['steps_per_epoch']} steps"
                ),
            )
        )
    if data:
        rows.append(("Tokens", data["tokens"]))
    steps = [str(run_folder.step_of(name)) for name in run_folder.checkpoints(run)]
    rows.append(("Checkpoints", "steps " + ", ".join(steps) if steps else "none"))
    if (kind := run_folder.artifact(run)) is not None:
        rows.append(("Artifact", run.join(kind).url))
    rows += [("Engines" if not count else "", one.line) for count, one in enumerate(verdicts(run))]
    if files := _page_files(run):
        rows.append(("Plots", ", ".join(files)))
    return rows


def curve(records: list[Record], console: Console) -> RenderableType:
    """The training loss curve as text."""
    from rich.text import Text

    from tailor.runs.report.textplot import curve as text_curve

    train = of_kind(records, "train")
    points = [(record["step"], record["loss"]) for record in train if record["loss"] is not None]
    unicode = not console.encoding or console.encoding.lower().startswith("utf")
    width = max(20, min(72, console.width - 12))
    lines = text_curve(points, width=width, unicode=unicode)
    if not lines:
        return Text("no loss curve yet: fewer than two steps are done")
    return Text("\n".join(["training loss by step", *lines, ""]))


def sample_answers(run: Store, count: int) -> RenderableType:
    """A table of held-out questions with the answers before and after training."""
    from rich.table import Table
    from rich.text import Text

    from tailor.runs.report.page import paired_answers

    answers = paired_answers(run)[:count]
    if not answers:
        return Text("")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("question", "before", "after", "reference"):
        table.add_column(head, overflow="fold", max_width=32)
    for answer in answers:
        table.add_row(
            Text(one_line(answer["prompt"])),
            Text(one_line(answer["before"])),
            Text(one_line(answer["answer"]), "green" if answer["exact"] else "red"),
            Text(one_line(answer["reference"])),
        )
    return table


def one_line(value: Any, limit: int = 120) -> str:
    """A text for a table cell: without line breaks, at most `limit` characters."""
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def truncated_line(count: int) -> str:
    """Reports the number of texts that a model did not read to their end."""
    texts, were = ("text", "was") if count == 1 else ("texts", "were")
    return f"{count:,} {texts} {were} longer than the model's maximum length and {were} truncated"


def next_commands(run: Store) -> list[str]:
    """Commands to try next on a run with an artifact, the most useful first."""
    here = shown_path(run.url)
    if run_files.ranks(run):
        is_adapter = run_files.planned_model(run).adapter is not None
        try_it = f"tailor merge {here}" if is_adapter else f"tailor score {here} rows.jsonl scored.jsonl"
    elif run_files.only_embeds(run):
        try_it = f"tailor search {here} texts.jsonl"
    elif run_folder.can_chat(run):
        try_it = f"tailor chat {here}"
    else:
        try_it = f'tailor generate {here} --plain --prompt "…"'
    return [try_it, f"tailor show {here}"]


def shown_path(url: str) -> str:
    """A local path, relative to the working directory if it is below it; in a Ray job, whose log is read elsewhere, absolute."""
    from tailor.onray.cluster import in_job

    if in_job():
        return url
    relative = os.path.relpath(url) if url.startswith("/") else url
    return url if relative.startswith("..") else relative
