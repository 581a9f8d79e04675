"""`tailor schema`: print the JSON Schema or the reference of recipes, cluster files or evaluation files."""

from __future__ import annotations

import argparse
import sys


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
        "--evaluation", action="store_true", help="of evaluation files, which `tailor evaluate` reads"
    )


def execute(args: argparse.Namespace) -> int:
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
