"""`tailor rehearse`: run a whole recipe in small on the CPU, with a tiny random model and the first rows."""

from __future__ import annotations

import argparse
from collections import Counter

from tailor.cli.output import Document, Output
from tailor.cli.recipe_arguments import add_recipe
from tailor.cli.terminal import make_console
from tailor.export.forms import EXPORT_FORMS, find_form
from tailor.quiet import quiet
from tailor.rehearse.rehearse import Result, Status


class CheckState(Document):
    """How a check ended. hint: what to do, or empty."""

    check: str
    status: Status
    message: str
    hint: str
    seconds: float
    """Wall-clock time."""


class Rehearsed(Document):
    """The checks of a rehearsal. The exit code is 2 if one failed."""

    failed: int
    """Number of checks of this status, as the next two."""
    skipped: int
    ok: int
    checks: list[CheckState]
    overrides: list[str]
    """The keys that were changed to make the recipe small."""
    not_rehearsed: list[str]
    """What of the recipe was left out."""


OUTPUT = Output(Rehearsed)
_SIGNS = {"ok": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("-", "dim")}


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "save.to=s3://bucket/run")
    parser.add_argument("--cluster", metavar="FILE", help="cluster file: also checks that the recipe fits it")
    parser.add_argument(
        "--as",
        dest="forms",
        action="append",
        metavar="FORM",
        help=f"export form to try: {', '.join(EXPORT_FORMS.names())}; may be repeated (default: huggingface)",
    )


def execute(args: argparse.Namespace) -> int:
    from rich.text import Text

    forms = list(dict.fromkeys(args.forms or ["huggingface"]))
    for form in forms:
        find_form(form)
    quiet()
    from tailor.rehearse.reduced import not_rehearsed, written
    from tailor.rehearse.rehearsal import rehearsal
    from tailor.rehearse.rehearse import rehearse

    console = make_console(soft_wrap=True)

    def show(one: Result) -> None:
        sign, color = _SIGNS[one.status]
        spent = f"{one.seconds:6.1f} s" if one.status != "skipped" else "        "
        console.print(
            Text.assemble((sign, color), f" {spent}  ", (f"{one.check:<16}", "bold"), one.message.rstrip())
        )
        if one.hint and one.status == "failed":
            console.print(Text(f"            hint: {one.hint}", "dim"))

    results: list[Result] = []
    with rehearsal(args.recipe, args.overrides, args.cluster, forms) as state:
        for one in rehearse(state):
            results.append(one)
            if not args.json:
                show(one)
    counts = Counter(one.status for one in results)
    left = not_rehearsed(state.recipe, state.corpora) if state.recipe is not None else []
    changed = written(list(dict(state.changed).items()))
    if args.json:
        args.json.write(
            Rehearsed(
                failed=counts["failed"],
                skipped=counts["skipped"],
                ok=counts["ok"],
                checks=[CheckState(**vars(one)) for one in results],
                overrides=changed,
                not_rehearsed=left,
            )
        )
    else:
        if changed:
            console.print(Text(f"rehearsed with {' '.join(changed)}", "dim"))
        for text in left:
            console.print(Text(f"not rehearsed: {text}", "dim"))
        console.print(
            Text(f"{counts['failed']} failed, {counts['skipped']} skipped, {counts['ok']} ok", "bold")
        )
    return 2 if counts["failed"] else 0
