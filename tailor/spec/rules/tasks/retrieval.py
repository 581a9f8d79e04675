"""Rules of retrieval collections."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys

ROWS = re.compile(r"\.(jsonl|ndjson|json|parquet|csv|tsv)(\.(gz|bz2|xz))?$", re.IGNORECASE)
"""The end of the name of a file with rows."""


def unused(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that have no effect."""
    return unused_of_corpus(keys, f"{key}.data")


def unused_of_corpus(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of a `Corpus` that have no effect when its path is a file of rows."""
    path = keys(f"{key}.path")
    if isinstance(path, str) and ROWS.search(path):
        for name in ("qrels", "ignore_identical_ids"):
            if keys(f"{key}.{name}") is not None:
                yield (
                    f"{key}.{name}",
                    f"has no effect: {path} is a file of rows; it is for folders in the BEIR layout",
                )


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that are wrong by themselves."""
    full = keys(f"{key}.dimension")
    for name in ("dimensions", "precisions"):
        values = keys(f"{key}.{name}")
        values = values if isinstance(values, list) else []
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            yield f"{key}.{name}", f"has {value} twice; remove one"
        for value in values:
            if isinstance(value, int) and isinstance(full, int) and value >= full:
                yield f"{key}.{name}", f"{value} is not smaller than dimension: {full}; remove it"
