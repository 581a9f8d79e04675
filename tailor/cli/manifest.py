"""`tailor manifest`: write a Kubernetes manifest (RayJob or RayCluster) for a recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tailor.cli.recipe_arguments import add_recipe
from tailor.errors import StoreError
from tailor.redaction import redacted

DEFAULT_CLUSTER = "cluster/k8s.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "save.to=s3://bucket/runs/x")
    parser.add_argument("--cluster", metavar="FILE", help=f"cluster file (default: {DEFAULT_CLUSTER})")
    parser.add_argument(
        "--kind",
        choices=("RayJob", "RayCluster"),
        default="RayJob",
        help="RayJob: a job with its own pods, removed afterwards (default); RayCluster: a cluster of that size, which stays",
    )


def execute(args: argparse.Namespace) -> int:
    from tailor.kube import fit, manifest

    path = args.cluster or DEFAULT_CLUSTER
    if args.cluster is None and not Path(path).exists():
        raise StoreError(
            f"no --cluster was given, and the default file {path} does not exist",
            hint="name a cluster file with --cluster",
        )
    cluster = manifest.load_cluster(path)
    recipe = manifest.load_recipe(args.recipe, cluster, args.overrides)
    for note in fit.notes(recipe, cluster, persistent=args.kind == "RayCluster"):
        print(f"tailor: note: {note}", file=sys.stderr)
    objects = manifest.documents(
        recipe, cluster, kind=args.kind, stem=Path(args.recipe).stem, overrides=args.overrides
    )
    kind = [] if args.kind == "RayJob" else ["--kind", args.kind]
    command = ["tailor", "manifest", args.recipe, *args.overrides, "--cluster", path, *kind]
    sys.stdout.write(manifest.text(objects, redacted(f"Written by: {shlex.join(command)}")))
    return 0
