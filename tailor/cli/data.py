"""`tailor data report`, `preview` and `doctor`: statistics of the data, which tokens are supervised, and faults of rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from tailor.cli.data_doctor import Findings
from tailor.cli.data_report import Report, reported
from tailor.cli.numbers import whole
from tailor.cli.output import Document, Output
from tailor.cli.recipe_arguments import add_recipe
from tailor.cli.terminal import make_console
from tailor.errors import DataError
from tailor.printable import printable
from tailor.quiet import quiet
from tailor.spec.load import load_recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tailor.encode.preview import Piece

_OPTIONS = {"preview": ("rows", "split"), "doctor": ("html", "benchmark")}
BAR = 40
"""Longest bar of the histogram, in characters."""


class PreviewPiece(Document):
    """Consecutive tokens of one kind. special: the text is the name of one special token."""

    text: str
    supervised: bool
    special: bool
    cut: bool


class PreviewRow(Document):
    """A row. name: file:row. note: what preparation does with it. examples: what is made of it, as pieces of text."""

    name: str
    note: str
    examples: list[list[PreviewPiece]]


class Preview(Document):
    """The first rows of each source."""

    split: Literal["train", "evaluation"]
    rows: list[PreviewRow]


OUTPUT = Output(Report | Preview | Findings)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("report", "preview", "doctor"),
        help="report: counts, lengths and dropped rows; preview: rows as the model sees them, supervised tokens marked; "
        "doctor: duplicates, leaked evaluation rows, damaged text and other faults",
    )
    add_recipe(parser, "data.max_length=4096")
    parser.add_argument("--rows", type=whole(1), metavar="N", help="preview: rows per source (default 3)")
    parser.add_argument(
        "--split",
        choices=("train", "evaluation"),
        help="preview: split to show (default: train)",
    )
    parser.add_argument("--html", metavar="FILE", help="doctor: also write the findings as an HTML page")
    parser.add_argument(
        "--benchmark",
        action="append",
        metavar="PATH",
        help="doctor: a file, folder, URL or hf://owner/dataset whose texts training rows must not contain; may be repeated",
    )


def execute(args: argparse.Namespace) -> int:
    for what, options in _OPTIONS.items():
        for option in options:
            if what != args.what and getattr(args, option):
                raise DataError(
                    f"`tailor data {args.what}` has no option --{option}",
                    hint=f"remove it; it is an option of `tailor data {what}`",
                )
    recipe = load_recipe(args.recipe, args.overrides)
    quiet()
    console = make_console(soft_wrap=True)
    if args.what == "doctor":
        from tailor.cli import data_doctor

        return data_doctor.execute(recipe, args, console)
    if args.what == "preview":
        return _preview(recipe, args, console)
    found = reported(recipe)
    if args.json:
        args.json.write(found)
    else:
        show(found, console)
    found.require()
    return 0


def show(found: Report, console: Console) -> None:
    """Print a report."""
    from rich.text import Text

    for source in found.sources:
        console.print(_source(source))
    for name, split in (("train", found.train), ("evaluation", found.evaluation)):
        if split["examples"]:
            console.print(_split(name, split))
    for note in found.notes:
        console.print(Text(note, "yellow"))
    if found.template is not None:
        console.print(f"chat template   {found.template}, end of turn {' or '.join(found.end_of_turn)}")
    console.print(f"tokens          {found.tokens}{' (prepared before)' if found.reused else ''}")


def _source(source: dict[str, Any]) -> Text:
    from rich.text import Text

    detected = " (detected)" if source["format_guessed"] else ""
    text = Text.assemble((f"data.{source['split']}[{source['index']}] {source['path']}", "bold"), "\n")
    text.append(f"  format        {source['format']}{detected}\n")
    text.append(f"  rows          {source['rows']:,} read, {source['kept']:,} kept")
    text.append(f", {source['held_out']:,} held out for evaluation\n" if source["held_out"] else "\n")
    for kind, style in (("unreadable", "red"), ("dropped", "yellow"), ("removed", "yellow")):
        for reason, loss in source.get(kind, {}).items():
            text.append(f"  {kind:<13} {loss['count']:,} {reason}\n", style=style)
            for name, detail in loss["first"]:
                text.append(f"                {name} {detail}\n", style="dim")
    if source["truncated"]:
        cut, before = source["supervised_tokens_cut"], source["prompt_tokens_cut"]
        text.append(
            f"  truncated     {source['truncated']:,} rows, {cut:,} supervised tokens cut"
            + (f", {before:,} prompt tokens cut\n" if before else "\n"),
            "yellow",
        )
    if source["chunked"]:
        dropped = source.get("pieces_left_out", 0)
        text.append(
            f"  chunked       {source['chunked']:,} rows into {source['pieces']:,} chunks"
            + (f"; {dropped:,} more dropped: no supervised token\n" if dropped else "\n")
        )
    if source.get("retrieved"):
        over, lost = source["tokens_passed_over"], source["supervised_tokens_cut"]
        text.append(f"  retrieved     passages of {source['retrieved']:,} rows, {over:,} tokens not selected")
        text.append(f", {lost:,} supervised tokens cut\n" if lost else "\n")
    if source["split_conversations"]:
        text.append(
            f"  split         {source['split_conversations']:,} conversations, because the chat template rewrites earlier turns\n"
        )
    for what, loss in source.get("changes", {}).items():
        text.append(f"  changed       {loss['count']:,} rows: {what} (first {loss['first'][0]})\n", "yellow")
    for name, loss in source.get("unused", {}).items():
        where, value = loss["first"]
        text.append(f"  unused        {loss['count']:,} rows have {name}\n", "yellow")
        text.append(f"                {where} {value}\n", style="dim")
    text.append(f"  tokens        {_tokens(source)}\n")
    return text


def _split(name: str, split: dict[str, Any]) -> Text:
    from rich.text import Text

    text = Text.assemble((name, "bold"), f": {split['examples']:,} examples, {_tokens(split)}\n")
    lengths = split["lengths"]
    text.append(
        "  tokens per example: " + ", ".join(f"{key} {value:,}" for key, value in lengths.items()) + "\n"
    )
    counts, edges = split["histogram"]["counts"], split["histogram"]["edges"]
    width = len(f"{edges[-1] - 1:,.0f}")
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "#" * max(round(BAR * count / max(counts)), int(count > 0))
        text.append(f"  {low:>{width},.0f} to {high - 1:>{width},.0f}  ")
        text.append(f"{bar:<{BAR}}", style="cyan")
        text.append(f" {count:,}\n")
    return text


def _tokens(counts: dict[str, Any]) -> str:
    share = 100 * counts["supervised_tokens"] / max(counts["tokens"], 1)
    return f"{counts['tokens']:,} tokens, {counts['supervised_tokens']:,} supervised ({share:.1f} %)"


def _preview(recipe: Any, args: argparse.Namespace, console: Console) -> int:
    from rich.text import Text

    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.encode.preview import preview

    scorer, split = scorer_of(recipe.data), args.split or "train"
    found = preview(recipe.data, recipe.model, recipe.method, split=split, rows=args.rows or 3, scorer=scorer)
    if args.json:
        args.json.write(Preview(split=split, rows=[PreviewRow(**asdict(row)) for row in found]))
        return 0
    legend = (
        Text.assemble(
            ("supervised", "green"),
            "  not supervised  ",
            ("special token", "reverse"),
            "  ",
            ("cut", "strike red"),
        )
        if console.color_system
        else Text("«supervised»  not supervised  ~~cut~~")
    )
    console.print(legend)
    for shown in found:
        console.print(Text.assemble("\n", (shown.name, "bold"), f"  {shown.note}"))
        for pieces in shown.examples:
            console.print(_colored(pieces) if console.color_system else Text(_marked(pieces)))
    return 0


def _colored(pieces: list[Piece]) -> Text:
    from rich.text import Text

    text = Text()
    for piece in pieces:
        styles = [
            style for style, applies in (("green", piece.supervised), ("reverse", piece.special)) if applies
        ]
        styles = ["strike", "red"] if piece.cut else styles
        text.append(printable(piece.text, lines=True).replace("\n", "↵\n"), style=" ".join(styles) or "dim")
    return text


def _marked(pieces: list[Piece]) -> str:
    """The same without color: «» around supervised tokens, ~~ around cut ones."""
    marked, state = "", ("", "")
    for piece in pieces:
        now = ("~~", "~~") if piece.cut else ("«", "»") if piece.supervised else ("", "")
        if now != state:
            marked += state[1] + now[0]
            state = now
        marked += printable(piece.text, lines=True)
    return marked + state[1]
