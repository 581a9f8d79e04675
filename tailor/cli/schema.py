"""`tailor schema`: print the JSON Schema or the reference of recipes, cluster files, evaluation files and other trainers."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

from tailor.errors import Problem, RecipeError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference", action="store_true", help="print the reference as Markdown instead of the JSON Schema"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--cluster",
        action="store_true",
        help="of cluster files, which `tailor manifest` reads (default: of recipes)",
    )
    which.add_argument(
        "--output",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="of what `tailor COMMAND --json` writes (default: all commands)",
    )
    which.add_argument(
        "--evaluation", action="store_true", help="of evaluation files, which `tailor evaluate` reads"
    )
    which.add_argument(
        "--trainers",
        action="store_true",
        help="print the tables of other trainers' arguments, which `tailor import` uses, as Markdown",
    )


def execute(args: argparse.Namespace) -> int:
    if args.output is not None:
        if args.reference:
            raise RecipeError(
                [Problem("tailor schema", 0, 0, "--output", "has no reference; leave --reference out")]
            )
        sys.stdout.write(output_schema_text(args.output))
        return 0
    if args.trainers:
        from tailor.spec.moving.page import page

        sys.stdout.write(page())
        return 0
    from tailor.kube import spec as kube
    from tailor.spec import evaluation
    from tailor.spec.base import File
    from tailor.spec.reading.json_schema import schema_text
    from tailor.spec.reading.reference import RECIPES, reference
    from tailor.spec.recipe import Recipe

    root: type[File] = Recipe
    head = RECIPES
    if args.cluster:
        root, head = kube.Cluster, kube.REFERENCE
    elif args.evaluation:
        root, head = evaluation.Evaluation, evaluation.REFERENCE
    sys.stdout.write(reference(root, head) if args.reference else schema_text(root))
    return 0


def output_schema_text(command: str = "") -> str:
    """The schema of one command's output; without a command, an object with the schema of every command under `$defs`.

    RecipeError for a command that has no `--json`.
    """
    from tailor.cli.main import COMMANDS

    outputs = {
        name: output
        for name, (module, _) in COMMANDS.items()
        if (output := getattr(importlib.import_module(module), "OUTPUT", None)) is not None
    }
    if command and command not in outputs:
        problem = f"{command} has no --json; the commands that have it: {', '.join(outputs)}"
        raise RecipeError([Problem("tailor schema", 0, 0, "--output", problem)])
    schemas = {
        name: {"title": f"tailor {name} --json", **output.schema()}
        for name, output in outputs.items()
        if command in ("", name)
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    found = schemas[command] if command else {"title": "tailor COMMAND --json", "$defs": _in_one(schemas)}
    return json.dumps({**dialect, **found}, indent=2, ensure_ascii=False) + "\n"


def _in_one(schemas: dict[str, Any]) -> dict[str, Any]:
    """Schemas as the definitions of one document: their references point to their own definitions in it."""
    return {
        name: json.loads(json.dumps(schema).replace('"#/$defs/', f'"#/$defs/{name}/$defs/'))
        for name, schema in schemas.items()
    }
