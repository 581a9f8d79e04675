"""The output of `tailor data doctor`: text, JSON, and an HTML page."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.cli.output import Document
from tailor.encode.doctor.finding import Severity
from tailor.errors import StoreError
from tailor.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tailor.encode.doctor.examine import Diagnosis
    from tailor.encode.doctor.finding import Finding


class FoundRow(Document):
    """A row (file:row) with a finding."""

    row: str
    detail: str


class FoundFault(Document):
    """A finding. message: what the rows are. count: their number."""

    check: str
    severity: Severity
    message: str
    count: int
    rows: list[FoundRow]
    """The first of them."""
    fix: str
    """Lines of the recipe that fix it, or empty."""


class Findings(Document):
    """What the doctor found in the data."""

    rows: int
    """Number of rows that were examined."""
    error: int
    """Number of findings of this severity, as the next two."""
    warning: int
    info: int
    findings: list[FoundFault]


NAMED = 5
"""Rows that the text names per finding; JSON and the page name up to 20."""
_COLORS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def execute(recipe: Any, args: argparse.Namespace, console: Console) -> int:
    """Examine a recipe's data and print the findings. The exit code is 0 whatever they are."""
    from rich.text import Text

    from tailor.encode.doctor.finding import summary
    from tailor.runs.report import doctor

    diagnosis = _examined(recipe, args.benchmark or [])
    if args.html is not None:
        try:
            Path(args.html).write_text(doctor.page(args.recipe, diagnosis), encoding="utf-8")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StoreError(
                f"{args.html} cannot be written: {reason}", hint="choose another file for --html"
            ) from None
    if args.json:
        args.json.write(diagnosis.as_dict())
        return 0
    for finding in diagnosis.findings:
        console.print(_text(finding))
    console.print(
        Text(f"{printable(args.recipe)}: {diagnosis.rows:,} rows, {summary(diagnosis.counts())}", "bold")
    )
    return 0


def _examined(recipe: Any, benchmarks: list[str]) -> Diagnosis:
    from tailor.cli.display import Display
    from tailor.encode.doctor.examine import examine
    from tailor.onray import cluster
    from tailor.onray.prepare import runner_by_size
    from tailor.spec.data import Benchmark

    with Display() as display, ExitStack() as stack:
        display.doing("examining data")

        def connect() -> None:
            stack.enter_context(cluster.BackgroundStart(recipe.scale)).wait()

        return examine(
            recipe.data,
            recipe.model,
            recipe.method,
            benchmarks=[Benchmark(path=path) for path in benchmarks],
            # The checks use one core per process, so that Ray pays off for small inputs, as on a cluster.
            runner=runner_by_size(connect, on_cluster=True),
        )


def _text(finding: Finding) -> Text:
    from rich.text import Text

    text = Text.assemble(
        (f"{finding.severity:<9}", _COLORS[finding.severity]),
        (finding.check, "bold"),
        f"{_count(finding)}: {finding.message}\n",
    )
    for name, detail in finding.rows[:NAMED]:
        text.append(f"         {name}  {detail}\n", style="dim")
    more = len(finding.rows) - NAMED
    if more > 0:
        text.append(f"         and {finding.count - NAMED:,} more\n", style="dim")
    if finding.fix:
        text.append("         recipe:\n")
        text.append("".join(f"           {line}\n" for line in finding.fix.splitlines()), style="green")
    return text


def _count(finding: Finding) -> str:
    return f" ({finding.count:,})" if finding.count else ""
