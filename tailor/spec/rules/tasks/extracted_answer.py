"""Rules of the task extracted_answer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys

GROUP = "answer"
"""The group of the regular expression that is the answer."""


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    regex = keys(f"{key}.regex")
    if keys(f"{key}.extract") == "regex" and keys.absent(f"{key}.regex"):
        yield f"{key}.extract", f"needs {key}.regex"
    if isinstance(regex, str):
        try:
            groups = re.compile(regex).groupindex
        except (re.error, OverflowError, RecursionError) as error:
            yield f"{key}.regex", f"is not a regular expression: {error}"
        else:
            if GROUP not in groups:
                yield f"{key}.regex", f"has no group (?P<{GROUP}>…), which is the answer"
    choices = keys(f"{key}.choices")
    texts = [one.casefold() for one in choices if isinstance(one, str)] if isinstance(choices, list) else []
    for text in sorted({text for text in texts if texts.count(text) > 1}):
        yield f"{key}.choices", f"has {text} twice; remove one"


def unused(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that have no effect."""
    for name, value in (("choices", "choice"), ("regex", "regex")):
        other = keys(f"{key}.extract") != value and not keys.is_wrong(f"{key}.extract")
        if other and keys(f"{key}.{name}") is not None:
            yield f"{key}.{name}", f"has no effect without extract: {value}"
