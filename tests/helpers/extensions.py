"""A package outside tailor that registers code of its own, by entry points in a folder on the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


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
