"""`tailor evaluate`: evaluate a trained model and compare it with its base."""

from __future__ import annotations

import argparse
import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.cli.main import INTERRUPTED
from tailor.cli.numbers import whole
from tailor.cli.output import Document, Failure, Output, Raw, failure_of
from tailor.cli.recipe_arguments import add_overrides
from tailor.cli.trust import add_trust_option, granted
from tailor.cli.worker_options import add_verbose_option
from tailor.errors import DataError, GateError
from tailor.layout import RECIPE
from tailor.quiet import quiet
from tailor.runs.evaluations import Results

if TYPE_CHECKING:
    from rich.console import Console

    from tailor.evaluate.chat_endpoint import ChatEndpoint
    from tailor.spec.evaluate import Generation
    from tailor.spec.evaluation import Evaluation
    from tailor.spec.suite import Suite
    from tailor.store import Store

DEFAULT_NAME = "default"
LEFT_OUT = {
    "cut": "rows are longer than max_length and were cut: they have no complete prompt or answer, and are not asked",
    "without_question": "rows have no question and are not asked",
    "short": "texts are shorter than the longest evaluated length and were skipped",
}
"""Key of the counts in results.json -> words for the rows that were left out."""
SAMPLES = 5


class Evaluated(Document):
    """A finished evaluation."""

    folder: str
    results: Raw[Results]
    """The content of `results.json` in the folder."""
    error: Failure | None
    """The bounds of `fail_if` that are violated, if any."""


OUTPUT = Output(Evaluated)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or folder of an adapter or model")
    add_overrides(parser, "limit=50", keys="evaluation")
    parser.add_argument(
        "--with",
        dest="file",
        metavar="FILE",
        help="evaluation file (default: evaluate.final of the run's recipe, else perplexity, exact match and F1)",
    )
    parser.add_argument(
        "--to", metavar="FOLDER", help="folder for the results (default: RUN/evaluation/NAME)"
    )
    parser.add_argument(
        "--samples",
        type=whole(0),
        default=SAMPLES,
        metavar="N",
        help=f"number of answers to print (default {SAMPLES})",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="let a server answer that has the run (`tailor serve`, or vLLM); TAILOR_API_KEY in the environment is its key",
    )
    parser.add_argument("--served-name", metavar="NAME", help="with --url: the run's name on the server")
    add_trust_option(parser)
    add_verbose_option(parser)


def execute(args: argparse.Namespace) -> int:
    suite, name = chosen(args.run, args.file, args.overrides)
    endpoint = None
    if args.url is not None:
        suite, endpoint = _served(args, suite)
        name = f"{name}-served"
    elif args.served_name is not None:
        raise DataError("--served-name has no effect without --url", hint="remove it")
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.onray.evaluate import evaluate

    trust = granted(args, [args.run])
    display = Display()
    try:
        with display:
            outcome = evaluate(
                args.run,
                suite,
                display,
                name=name,
                to=args.to,
                trust=trust,
                verbose=args.verbose,
                endpoint=endpoint,
            )
    except KeyboardInterrupt:
        print(
            "tailor: interrupted; run the same command again to continue after the finished batches",
            file=sys.stderr,
        )
        return INTERRUPTED
    try:
        violated = None
        outcome.require()
    except GateError as error:
        violated = error
    if args.json:
        failure = violated and failure_of(violated)
        args.json.write(Evaluated(folder=outcome.folder.url, results=outcome.results, error=failure))
    else:
        show(outcome.folder, outcome.results, display.console, args.samples)
    if violated is not None:
        raise violated
    return 0


def _served(args: argparse.Namespace, suite: Evaluation) -> tuple[Evaluation, ChatEndpoint]:
    """The evaluation without a comparison, and the server. DataError when it names models to compare with."""
    from tailor.cli.chat_url import endpoint_of

    if suite.compare not in ("auto", "none", []):
        raise DataError(
            "compare: a served model is evaluated alone",
            hint="add compare=none, and evaluate the other models too",
        )
    suite = suite.model_copy(update={"compare": "none"})
    name = args.served_name or posixpath.basename(args.run.rstrip("/"))
    return suite, endpoint_of(args.url, name, "completions")


def chosen(run: str, file: str | None, overrides: list[str]) -> tuple[Evaluation, str]:
    """The evaluation to run, and its default name."""
    from tailor.spec.load import load_evaluation, load_recipe, with_overrides
    from tailor.store import Store

    if file is not None:
        return load_evaluation(file, overrides), Path(file).stem
    store = Store(run)
    if store.exists(RECIPE):
        own = load_recipe(store.local_path(RECIPE), check_files=False).evaluate
        if own.final is not None:
            _refuse_untrusted(own.final, f"{run}/{RECIPE}")
            return with_overrides(own.final, f"{run}/{RECIPE}", overrides), "final"
        if own.generation is not None:
            return _like_the_run(own.generation, with_overrides(None, "evaluation", overrides)), DEFAULT_NAME
    return with_overrides(None, "evaluation", overrides), DEFAULT_NAME


def _refuse_untrusted(suite: Suite, file: str) -> None:
    """DataError when the evaluation in a run folder runs code, or sends answers to a server.

    A run folder may come from someone else; an evaluation file is named by the user.
    """
    for task in suite.tasks:
        if (action := task.needs_trust()) is not None:
            raise DataError(
                f"{file}: evaluate.final {action}",
                hint="if you trust it, copy evaluate.final into an evaluation file, and give it with --with",
            )


def _like_the_run(generation: Generation, suite: Evaluation) -> Evaluation:
    """Set max_new_tokens and limit to those of the run's own `evaluate.generation`, unless the user sets them."""
    if "max_new_tokens" not in suite.decoding.model_fields_set:
        decoding = suite.decoding.model_copy(update={"max_new_tokens": generation.max_new_tokens})
        suite = suite.model_copy(update={"decoding": decoding})
    if "limit" not in suite.model_fields_set:
        suite = suite.model_copy(update={"limit": generation.limit})
    return suite


def show(folder: Store, results: dict[str, Any], console: Console, samples: int) -> None:
    """Print the table of figures, some answers, and the folder of the results."""
    from rich.text import Text

    from tailor.cli.show import shown_path, truncated_line
    from tailor.runs import context_lengths, evaluations
    from tailor.runs.report import heatmap

    console.print()
    console.print(aligned(*evaluations.table(results)))
    console.print(Text(results["intervals"], "dim"))
    for head, body in evaluations.tables_by_value(results):
        console.print()
        console.print(aligned(head, body))
    for task, grid in results.get("grids", {}).items():
        console.print()
        console.print(Text("\n".join(heatmap.lines(task, grid, unicode=console.encoding.startswith("utf")))))
    if samples:
        for kind, file in evaluations.rows_to_show(folder):
            console.print()
            console.print(sample_table(folder, results, kind, file, samples))
    console.print()
    rows = results["rows"]
    if rows["available"] is not None:
        used = rows.get("used", max((rows.get(part, 0) for part in ("passages", "answers")), default=0))
        console.print(Text.assemble(("rows            ", "bold"), f"{used:,} of {rows['available']:,}"))
    for name, words in LEFT_OUT.items():
        if rows.get(name):
            console.print(Text(f"{rows[name]:,} {words}", "yellow"))
    for model, ratios in results.get("beacons", {}).items():
        console.print(
            Text.assemble(("beacons         ", "bold"), f"{model}: {evaluations.compression(ratios)}")
        )
    for line in context_lengths.lines(results.get("effective_lengths", {})):
        console.print(Text.assemble(("context length  ", "bold"), line))
    if "corpus" in rows:
        blank = f", {rows['blank']:,} of them empty" if rows["blank"] else ""
        console.print(Text.assemble(("corpus          ", "bold"), f"{rows['corpus']:,} passages{blank}"))
        if rows.get("missing"):
            words = "judged passages are not in the corpus, and count as not found"
            console.print(Text(f"{rows['missing']:,} {words}", "yellow"))
    for model, count in rows.get("truncated", {}).items():
        if count:
            console.print(Text(f"{model}: {truncated_line(count)}", "yellow"))
    console.print(Text.assemble(("results         ", "bold"), shown_path(folder.url)))


def aligned(head: list[str], body: list[list[str]]) -> Any:
    """A table of figures, one line per row, never wrapped."""
    from rich.text import Text

    from tailor.cli.show import one_line

    head, *body = ([one_line(cell) for cell in row] for row in (head, *body))
    widths = [max(len(row[at]) for row in (head, *body)) for at in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (head, *body))
    ]
    return Text.assemble((lines[0], "bold"), *(f"\n{line}" for line in lines[1:]))


def sample_table(folder: Store, results: dict[str, Any], kind: str, file: str, count: int) -> Any:
    """A table of the first `count` rows of a result file (of `facts`, of all rows): questions with every model's
    answer, or queries with the best passage found.
    """
    from tailor.runs import evaluations

    models = list(results["models"])
    rows = evaluations.rows(folder, kind, file, models, None if kind == "facts" else count)
    return _searches(rows, models) if kind == "searches" else _answers(rows, models, kind)


def _searches(rows: list[dict[str, Any]], models: list[str]) -> Any:
    """Queries with the best passage that each model found."""
    from rich.table import Table
    from rich.text import Text

    from tailor.cli.show import one_line

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("query", *(f"best of {model}" for model in models)):
        table.add_column(Text(head), overflow="fold", max_width=40)
    for row in rows:
        firsts = [next(iter(row["models"][model]["found"]), None) for model in models]
        cells = [
            Text(one_line(first["text"]), "green" if first["grade"] > 0 else "red") if first else Text("")
            for first in firsts
        ]
        table.add_row(Text(one_line(row["query"])), *cells)
    return table


def _answers(rows: list[dict[str, Any]], models: list[str], kind: str) -> Any:
    """Questions with every model's answer and the reference, or the facts and whether the first model states them."""
    from rich.table import Table
    from rich.text import Text

    from tailor.cli.show import one_line

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("question", *models, "facts" if kind == "facts" else "reference"):
        table.add_column(Text(head), overflow="fold", max_width=32)
    for row in rows:
        cells = [Text(one_line(row["prompt"]))]
        for model in models:
            mine = row["models"][model]
            right = all(value == 1 for key, value in mine.items() if isinstance(value, float))
            cells.append(Text(one_line(mine["answer"]), "green" if right else "red"))
        if kind == "facts":
            marks = row["models"][models[0]]["found"]
            fact_lines = (
                f"{'✓' if found else '✗'} {' / '.join(ways)}"
                for found, ways in zip(marks, row["facts"], strict=True)
            )
            cells.append(Text("\n".join(fact_lines)))
        else:
            cells.append(Text(one_line(row["reference"])))
        table.add_row(*cells)
    return table
