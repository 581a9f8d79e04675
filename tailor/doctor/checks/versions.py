"""Versions of Python, of tailor and of the packages that it requires."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import tailor
from tailor.doctor.finding import Context, Finding

CONSTRAINTS = Path(tailor.__file__).parents[1] / "constraints.txt"
"""The tested versions, in a checkout."""
NAMED = ("torch", "transformers", "ray", "peft", "datasets", "bitsandbytes")
"""Packages whose versions are reported."""


def check(context: Context) -> Iterator[Finding]:
    named = ", ".join(f"{name} {version(name) or 'missing'}" for name in NAMED)
    yield Finding("ok", f"tailor {tailor.__version__}, Python {platform.python_version()}, {named}")
    yield from unsatisfied()
    yield from untested(CONSTRAINTS)


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unsatisfied() -> Iterator[Finding]:
    """Required packages that are missing or have another version."""
    from packaging.requirements import Requirement

    try:
        requirements = metadata.requires("tailor") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "warning", "tailor is not installed as a package", "pip install -c constraints.txt -e ."
        )
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Finding(
                "failed",
                f"{wanted} is required, and {found or 'none'} is installed",
                f"pip install '{wanted}'",
            )


def untested(constraints: Path) -> Iterator[Finding]:
    """The named packages whose version is another one than the tests ran with."""
    if not constraints.is_file():
        return
    tested = dict(
        re.findall(r"^([\w.-]+)==([^;\s]+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    )
    others = [
        f"{name} {found} (tested: {tested[name]})"
        for name in NAMED
        if name in tested and (found := version(name)) and found.partition("+")[0] != tested[name]
    ]
    if others:
        yield Finding(
            "warning", f"other versions than tested: {', '.join(others)}", f"pip install -c {constraints} …"
        )
