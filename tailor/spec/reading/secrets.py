"""Find secrets in a file, which must not contain any.

A recipe is copied into every run's folder, a cluster file into a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tailor.errors import Problem
from tailor.spec.reading.source import Document, Path

_TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_CREDENTIALS = re.compile(r"://[^/\s@]*:[^/\s@]+@|[?&](X-Amz-Signature|X-Goog-Signature|sig|token)=")


def problems(document: Document, location: str) -> list[Problem]:
    """One problem per value that looks like a secret. The value is never shown. location: where secrets belong."""
    found = []
    for path, text in _texts(document.values, ()):
        if _TOKEN.search(text):
            message = f"looks like a secret token; remove it and put secrets into {location}"
        elif _CREDENTIALS.search(text):
            message = f"is a URL with credentials; remove them and put secrets into {location}"
        else:
            continue
        found.append(document.at_value(path).problem(path, message))
    return found


def is_secret(text: str) -> bool:
    return bool(_TOKEN.search(text) or _CREDENTIALS.search(text))


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))
