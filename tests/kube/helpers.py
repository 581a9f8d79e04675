"""A small recipe and cluster file, and the objects generated from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tailor.kube import manifest

RECIPE = """\
model: {path: org/base}
data:
  train: [{path: s3://bucket/rows.jsonl}]
method: {name: sft}
optim: {learning_rate: 2e-4}
save: {to: s3://bucket/runs/x, every: 50}
"""
CLUSTER = """\
image: registry.example.org/tailor:1.0
worker: {cpu: 4, memory: 8Gi}
"""


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def objects(
    folder: Path,
    recipe: str = RECIPE,
    cluster: str = CLUSTER,
    overrides: Sequence[str] = (),
    kind: manifest.Kind = "RayJob",
) -> list[dict[str, Any]]:
    """The Kubernetes objects for the texts of a recipe and a cluster file."""
    loaded = manifest.load_cluster(str(write(folder, cluster, "cluster.yaml")))
    path = str(write(folder, recipe, "recipe.yaml"))
    judged = manifest.load_recipe(path, loaded, overrides)
    return manifest.documents(judged, loaded, kind=kind, stem="recipe", overrides=overrides)
