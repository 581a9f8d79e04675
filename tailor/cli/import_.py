"""`tailor import`: write a recipe from the configuration of another trainer."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tailor.cli.output import Document, FoundProblem, Output
from tailor.errors import Problem, StoreError
from tailor.spec.trainers.registry import IMPORTED


class ArgumentAnswer(Document):
    """What becomes of one argument of the file."""

    argument: str
    line: int
    """From 1; 0 if it is not in a file with lines."""
    outcome: str
    """`taken`, `unneeded`, `unsupported` or `unknown`."""
    keys: list[str]
    """The recipe keys that it sets."""
    text: str


class ImportedRecipe(Document):
    """The recipe that was made of a file of another trainer."""

    trainer: str
    """The trainer whose table was used, a value of `--from`."""
    file: str | None
    """The recipe that was written; null if only `recipe` has it."""
    recipe: str
    """Its text."""
    arguments: list[ArgumentAnswer]
    problems: list[FoundProblem]
    """What is left to do until it validates. `key` is a key of the recipe."""


OUTPUT = Output(ImportedRecipe)


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{trainer.name}: {trainer.title}, {trainer.reads}" for trainer in IMPORTED.values())
    parser.add_argument(
        "file",
        metavar="FILE",
        help="file of another trainer, - for the standard input: YAML, JSON, or a shell command. Nothing in it is executed",
    )
    parser.add_argument("-o", "--out", metavar="RECIPE", help="file to write (default: print the recipe)")
    parser.add_argument(
        "--from",
        dest="trainer",
        choices=list(IMPORTED),
        metavar="TRAINER",
        help=f"its trainer, if the keys do not say: {kinds}",
    )


def execute(args: argparse.Namespace) -> int:
    from tailor.spec.moving.draft import one_line
    from tailor.spec.moving.importing import import_file
    from tailor.spec.moving.reading import shown

    if args.out is not None and os.path.lexists(args.out):
        raise StoreError(f"{args.out} exists already", hint="name another file, or remove it")
    found = import_file(args.file, args.trainer, args.out)
    if args.out is not None:
        _write(Path(args.out), found.recipe)
    if args.json:
        answers = [
            ArgumentAnswer(
                argument=answer.argument.shown,
                line=answer.argument.line,
                outcome=answer.outcome,
                keys=answer.keys,
                text=answer.text,
            )
            for answer in found.answers
        ]
        problems = [_problem(problem) for problem in found.problems]
        args.json.write(
            ImportedRecipe(
                trainer=found.trainer.name,
                file=args.out,
                recipe=found.recipe,
                arguments=answers,
                problems=problems,
            )
        )
        return 0
    if args.out is None:
        sys.stdout.write(found.recipe)
    counts = [
        (outcome, sum(answer.outcome == outcome for answer in found.answers))
        for outcome in ("taken", "unneeded", "unsupported", "unknown")
    ]
    words = {
        "taken": "taken over",
        "unneeded": "not needed",
        "unsupported": "not supported",
        "unknown": "unknown",
    }
    said = ", ".join(f"{count} {words[outcome]}" for outcome, count in counts if count)
    out = sys.stdout if args.out is not None else sys.stderr
    print(
        f"{args.out or shown(args.file)}: {found.trainer.title}: {len(found.answers)} arguments: {said}",
        file=out,
    )
    for answer in found.answers:
        if answer.outcome in ("unsupported", "unknown"):
            print(f"  {words[answer.outcome]}: {answer.argument.shown}: {one_line(answer.text)}", file=out)
    for problem in found.problems:
        print(f"  left to do: {problem.key}: {problem.message}", file=out)
    if not found.problems:
        print("  the recipe validates", file=out)
    return 0


def _problem(problem: Problem) -> FoundProblem:
    return FoundProblem(
        file=problem.file, line=problem.line, column=problem.column, key=problem.key, message=problem.message
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{path} cannot be written: {reason.lower()}") from None
