"""`tailor schema`: the JSON Schema of a recipe or a cluster file, and the references."""

from __future__ import annotations

import argparse
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", action="store_true", help="print the reference (Markdown) instead")
    parser.add_argument(
        "--cluster", action="store_true", help="of the cluster file that `tailor manifest` reads"
    )


def execute(args: argparse.Namespace) -> int:
    from tailor.kube.spec import REFERENCE, Cluster
    from tailor.spec.recipe import Recipe
    from tailor.spec.reference import RECIPES, reference
    from tailor.spec.schema import schema_text

    root = Cluster if args.cluster else Recipe
    head = REFERENCE if args.cluster else RECIPES
    sys.stdout.write(reference(root, head) if args.reference else schema_text(root))
    return 0
