"""Symbolic links in model folders: only those that stay in the folder are copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


def leaves(path: Path, folder: Path) -> bool:
    """Whether a path in a model folder leads to a file outside of it. Files in the hub's cache are links to its blobs."""
    target, base = path.resolve(), folder.resolve()
    allowed = [base]
    if base.parent.name == "snapshots":
        allowed.append(base.parent.parent / "blobs")
    return not any(target.is_relative_to(one) for one in allowed)


def inside(paths: Iterable[Path], folder: Path, skipped: list[str]) -> Iterator[Path]:
    """The files among `paths` that do not leave the folder. Adds a line about each of the others to `skipped`."""
    for path in paths:
        if not path.is_file():
            continue
        if leaves(path, folder):
            skipped.append(f"note: {path} is a link to a file outside the model's folder and was not copied")
        else:
            yield path
