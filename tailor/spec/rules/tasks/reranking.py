"""Rules of the task reranking."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.rules.tasks.retrieval import ROWS, unused_of_corpus


def unused(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that have no effect."""
    yield from unused_of_corpus(keys, f"{key}.data")


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that are wrong together."""
    path = keys(f"{key}.data.path")
    if keys(f"{key}.candidates") is not None and isinstance(path, str) and ROWS.search(path):
        yield (
            f"{key}.candidates",
            f"needs a folder in the BEIR layout: the queries of {path} have no ids; without it, the passages of a row are its candidates",
        )
