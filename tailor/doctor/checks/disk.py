"""Free space where runs, tokens, temporary files and downloads go."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tailor.doctor.finding import GIB, Context, Finding
from tailor.doctor.needs import is_remote, local, weights_bytes, written
from tailor.spec.rules.files import hub_cache
from tailor.store import cache_folder

FULL, LOW = 1 * GIB, 20 * GIB


def check(context: Context) -> Iterator[Finding]:
    """Folders on one disk are one finding."""
    disks: dict[int, tuple[Path, list[str]]] = {}
    for label, folder in folders(context):
        there = existing(folder)
        if not os.access(there, os.W_OK):
            yield Finding(
                "failed",
                f"{label}: this user may not write to {there}",
                "choose another folder, or change its owner",
            )
            continue
        disks.setdefault(there.stat().st_dev, (there, []))[1].append(label)
    low = LOW
    if context.recipe is not None and (weights := weights_bytes(context.recipe)) is not None:
        low = max(FULL, 4 * weights)  # the model, and checkpoints with the optimizer's state
    for folder, labels in disks.values():
        free = shutil.disk_usage(folder).free
        text = f"{free / GIB:.1f} GiB free for {', '.join(labels)} ({folder})"
        if free < FULL:
            yield Finding("failed", text, "free some space, or choose folders on another disk")
        elif free < low:
            yield Finding("warning", text, f"large models need more: {low / GIB:.0f} GiB is a safe start")
        else:
            yield Finding("ok", text)


def folders(context: Context) -> Iterator[tuple[str, Path]]:
    if context.recipe is not None:
        yield from ((key, local(url)) for key, url in written(context.recipe) if not is_remote(url))
    else:
        yield "the working directory", Path.cwd()
    yield "temporary files", Path(tempfile.gettempdir())
    yield "the hub's cache", hub_cache()
    yield "tailor's cache", cache_folder()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
