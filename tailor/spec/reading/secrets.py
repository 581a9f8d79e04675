"""Find secrets in a file, which must not contain any.

A recipe is copied into every run's folder, a cluster file into a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailor import redaction
from tailor.errors import MAX_PROBLEMS, Problem
from tailor.spec.reading.source import Document, Path

_BLOCK = 256
"""Texts that are searched together: most files have no secret, and one search of a long text is faster than many."""
_MIN_KEY = 12
"""Characters of a key that may contain a token."""
_OWN_RULES = ("env", "secret_env")
"""Sections whose names `tailor.kube.check` judges by the rules of environment variables."""


def problems(document: Document, location: str) -> list[Problem]:
    """One problem per text that looks like a secret. The text is never shown. location: where secrets belong."""
    found: list[Problem] = []
    texts = list(_texts(document.values, ()))
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        if not redaction.is_secret("\n".join(text for _, text in block)) and not any(
            redaction.is_tracker_key(text) for path, text in block if path[:1] == ("track",)
        ):
            continue
        for path, text in block:
            if message := _message(path, text):
                found.append(document.at_value(path).problem(path, message.format(location)))
                if len(found) > MAX_PROBLEMS:
                    return found
    return found


def key_problems(document: Document, location: str) -> list[Problem]:
    """One problem per key whose name says that its text is a secret."""
    return [
        document.at_key(path).problem(path, f"is the key of a secret; put secrets into {location}")
        for path, text in _values(document.values, ())
        if text
        and path
        and path[0] not in _OWN_RULES
        and isinstance(path[-1], str)
        and redaction.is_secret_key(path[-1])
    ]


def _message(path: Path, text: str) -> str | None:
    if redaction.is_token(text):
        return "looks like a secret token; remove it and put secrets into {}"
    if redaction.has_credentials(text):
        return "is a URL with credentials; remove them and put secrets into {}"
    if redaction.is_secret(text):
        return "contains a secret; remove it and put secrets into {}"
    if path[0] == "track" and redaction.is_tracker_key(text):
        return "looks like the key of a tracking service; remove it and put secrets into {}"
    return None


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every text of the file: values, and keys, which are texts of the user too."""
    yield from _values(value, path)
    yield from ((key, str(key[-1])) for key in _keys(value, path) if len(str(key[-1])) >= _MIN_KEY)


def _values(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values(inner, (*path, index))


def _keys(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _keys(inner, (*path, index))
