"""The packages that docs/extending.md shows, as installed distributions."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.extensions import make_distribution

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
_BLOCK = re.compile(r"^```\w+\n# (?P<file>[\w./-]+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def files(heading: str) -> dict[str, str]:
    """The files that a section of the page shows: name -> content."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {match["file"]: match["code"] for match in _BLOCK.finditer(section)}


def install(heading: str, folder: Path) -> Path:
    """A folder for PYTHONPATH that holds the section's package as an installed distribution."""
    shown = files(heading)
    project = shown.pop("pyproject.toml")
    name = re.search(r'^name = "(.*)"$', project, re.MULTILINE)
    assert name is not None
    groups: dict[str, dict[str, str]] = {}
    for group, lines in re.findall(r'entry-points\."([\w.]+)"\]\n((?:.+\n)+)', project):
        groups[group] = dict(re.findall(r'^([\w-]+) = "(.*)"$', lines, re.MULTILINE))
    assert groups, "the section shows its entry points"
    return make_distribution(folder, name[1], shown, groups)
