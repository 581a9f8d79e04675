"""`tailor manifest`: a recipe as a RayJob or RayCluster for Kubernetes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

DEFAULT_CLUSTER = "cluster/k8s.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe's file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as save.to=s3://bucket/runs/x"
    )
    parser.add_argument(
        "--cluster", default=DEFAULT_CLUSTER, metavar="FILE", help=f"the cluster file ({DEFAULT_CLUSTER})"
    )
    parser.add_argument(
        "--kind",
        choices=("RayJob", "RayCluster"),
        default="RayJob",
        help="a job with its own pods (RayJob), or pods of the same size that stay",
    )


def execute(args: argparse.Namespace) -> int:
    from tailor.kube import fit, manifest

    cluster = manifest.load_cluster(args.cluster)
    recipe = manifest.load_recipe(args.recipe, cluster, args.overrides)
    for note in fit.notes(recipe, cluster):
        print(f"tailor: note: {note}", file=sys.stderr)
    objects = manifest.documents(
        recipe, cluster, kind=args.kind, stem=Path(args.recipe).stem, overrides=args.overrides
    )
    kind = [] if args.kind == "RayJob" else ["--kind", args.kind]
    command = ["tailor", "manifest", args.recipe, *args.overrides, "--cluster", args.cluster, *kind]
    sys.stdout.write(manifest.text(objects, f"Written by: {shlex.join(command)}"))
    return 0
