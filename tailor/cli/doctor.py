"""`tailor doctor`: check this machine and what a recipe needs of it."""

from __future__ import annotations

import argparse
from collections import Counter

from tailor.cli.output import Document, Output
from tailor.cli.recipe_arguments import add_overrides
from tailor.cli.terminal import make_console
from tailor.doctor.finding import Context, Finding, Status
from tailor.errors import RecipeError, TailorError
from tailor.printable import printable
from tailor.quiet import quiet
from tailor.spec.load import check_recipe
from tailor.spec.recipe import Recipe


class FoundState(Document):
    """A finding. hint: what to do, or empty."""

    check: str
    status: Status
    message: str
    hint: str


class Examined(Document):
    """What the checks found. The exit code is 2 if one failed."""

    failed: int
    """Number of findings of this status, as the next two."""
    warning: int
    ok: int
    findings: list[FoundState]


OUTPUT = Output(Examined)
_COLORS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", help="recipe file: checks what it needs. Default: only this machine"
    )
    add_overrides(parser, "save.to=s3://bucket/run")
    parser.add_argument(
        "--offline", action="store_true", help="send no requests to the hub, to stores or to a cluster"
    )


def execute(args: argparse.Namespace) -> int:
    from rich.text import Text

    from tailor.doctor.examine import examine

    quiet()
    console = make_console(soft_wrap=True)
    found: list[FoundState] = []

    def show(check: str, finding: Finding) -> None:
        found.append(
            FoundState(check=check, status=finding.status, message=finding.message, hint=finding.hint)
        )
        if args.json:
            return
        console.print(
            Text.assemble(
                (f"{finding.status:<9}", _COLORS[finding.status]), (f"{check:<10}", "bold"), finding.message
            )
        )
        if finding.hint and finding.status != "ok":
            console.print(Text(f"         hint: {finding.hint}", "dim"))

    recipe = None
    if args.recipe is not None:
        recipe, findings = _read(args.recipe, args.overrides)
        for finding in findings:
            show("recipe", finding)
    for check, finding in examine(Context(recipe, args.offline)):
        show(check, finding)
    counts = Counter(one.status for one in found)
    if args.json:
        args.json.write(
            Examined(failed=counts["failed"], warning=counts["warning"], ok=counts["ok"], findings=found)
        )
    else:
        console.print(
            Text(f"{counts['failed']} failed, {counts['warning']} warnings, {counts['ok']} ok", "bold")
        )
    return 2 if counts["failed"] else 0


def _read(path: str, overrides: list[str]) -> tuple[Recipe | None, list[Finding]]:
    """The recipe, or None with a finding per problem: the machine is checked all the same."""
    try:
        recipe, before = check_recipe(path, overrides)
    except RecipeError as error:
        return None, [Finding("failed", str(problem), "see `tailor validate`") for problem in error.problems]
    except TailorError as error:
        return None, [Finding("failed", error.message, error.hint or "")]
    found = [Finding("ok", f"{printable(path)} is valid")]
    if before:
        found.append(
            Finding(
                "warning", "it starts from a run that does not exist yet", f"run {', '.join(before)} first"
            )
        )
    return recipe, found
