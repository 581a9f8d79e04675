"""`tailor jobs`: list the jobs of a Ray cluster, follow one, or stop one after a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from tailor.cli.main import INTERRUPTED
from tailor.cli.output import Document, Output
from tailor.cli.terminal import make_console
from tailor.errors import ScaleError
from tailor.redaction import redacted

if TYPE_CHECKING:
    from tailor.onray.jobs import Job, Jobs

COLORS = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "pending": ""}


class JobState(Document):
    """A job. Times are in seconds since the epoch."""

    name: str
    state: Literal["pending", "running", "finished", "failed", "stopped"]
    run: str
    """The run folder, or the command of a job that was submitted without tailor."""
    started: float | None
    ended: float | None
    exit_code: int | None
    """Null while it runs, and when Ray or a lost node ended it."""
    message: str


class ListedJobs(Document):
    """All jobs of the cluster (`list`), or the named one (`logs` when the job has ended, `stop`)."""

    jobs: list[JobState]


OUTPUT = Output(ListedJobs)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("list", "logs", "stop"),
        help="list: all jobs; logs: follow a job's log and exit with its code; stop: save a checkpoint and stop a job",
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="name of the job, for logs and stop")
    add_address(parser)


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="URL of the Ray dashboard (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )


def execute(args: argparse.Namespace) -> int:
    if (args.what == "list") != (args.job is None):
        raise ScaleError(
            f"`tailor jobs {args.what}` takes {'no job name' if args.what == 'list' else 'the name of a job'}",
            hint="use `tailor jobs list`, `tailor jobs logs JOB` or `tailor jobs stop JOB`",
        )
    from tailor.onray.jobs import Jobs

    jobs = Jobs(args.address)
    if args.what == "list":
        if args.json:
            args.json.write(listed(jobs.all()))
            return 0
        return _list(jobs)
    if args.what == "logs":
        code = followed(jobs, args.job)
        if args.json:
            args.json.write(listed([jobs.job(args.job)]))
        return code
    job = jobs.stop(args.job, show)
    if args.json:
        args.json.write(listed([job]))
    print(f"job {job.name} is {job.state}", file=sys.stderr)
    return 0


def listed(jobs: Sequence[Job]) -> ListedJobs:
    return ListedJobs(
        jobs=[
            JobState(
                name=job.name,
                state=job.state,
                run=job.run,
                started=job.started,
                ended=job.ended,
                exit_code=job.code,
                message=redacted(job.message),
            )
            for job in jobs
        ]
    )


def followed(jobs: Jobs, name: str) -> int:
    """Print a job's log until it ends, and return its exit code. Ctrl-C ends the log; the job keeps running."""
    try:
        return jobs.follow(name, show)
    except KeyboardInterrupt:
        print(
            f"tailor: the job keeps running; `tailor jobs logs {name}` follows it, `tailor jobs stop {name}` stops it",
            file=sys.stderr,
        )
        return INTERRUPTED


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _list(jobs: Jobs) -> int:
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    found = jobs.all()
    if not found:
        console.print(f"no jobs on {redacted(jobs.address)}")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("job", "state", "code", "started", "took", "run"):
        table.add_column(head, justify="right" if head == "code" else "left", no_wrap=True)
    for job in found:
        code = "" if job.code is None else str(job.code)
        table.add_row(job.name, Text(job.state, COLORS[job.state]), code, _when(job), _took(job), job.run)
    if not console.is_terminal:
        console.width = 10_000  # never truncate lines in a pipe
    console.print(table)
    return 0


def _when(job: Job) -> str:
    return datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M") if job.started else ""


def _took(job: Job) -> str:
    from tailor.runs.words import duration

    return duration((job.ended or time.time()) - job.started) if job.started else ""
