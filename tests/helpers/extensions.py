"""A package outside tailor that registers code of its own, by entry points in a folder on the path."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailor.registry import Registry


def make_distribution(
    folder: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """A folder for PYTHONPATH: its modules, and the metadata of an installed distribution `name`.

    modules: file name -> Python code. entry_points: group -> name -> `module:attribute`.
    """
    for file, code in modules.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(code)
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    text = ""
    for group, names in entry_points.items():
        text += f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
    (about / "entry_points.txt").write_text(text)
    return folder


@contextmanager
def installed(folder: Path, registry: Registry[Any]) -> Iterator[None]:
    """The distribution in `folder` is installed in this process, for one registry."""
    vars(registry).pop("_registered", None)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        vars(registry).pop("_registered", None)


def documented(folder: Path, heading: str) -> Path:
    """The package that a section of docs/extending.md shows, installed in `folder`."""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    blocks = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", section, re.M | re.S))
    about = blocks.pop("pyproject.toml")
    (name,) = re.findall(r'^name = "(.+)"$', about, re.M)
    (group,) = re.findall(r'^\[project\.entry-points\."(.+)"\]$', about, re.M)
    points = dict(re.findall(r'^([\w-]+) = "(.+)"$', about.partition(group)[2], re.M))
    return make_distribution(folder, name, blocks, {group: points})
