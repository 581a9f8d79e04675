"""Rules of the task lm_eval."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys

OF_MODEL = ("tokenizer", "pretrained", "model")
"""Keys of metadata in which lm-eval's tasks look for a tokenizer. They would run the tokenizer's own code."""
LENGTHS = "max_seq_lengths"
"""Key of metadata with the context lengths of RULER's tasks."""


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    seen: list[object] = []
    names = keys(f"{key}.tasks")
    for at, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml"))):
            yield (
                f"{key}.tasks.{at}",
                f"{name} is a path; write the task's name here and its folder in include",
            )
        elif name in seen:
            yield f"{key}.tasks.{at}", f"{name} is listed twice; remove one"
        seen.append(name)
    metadata = keys(f"{key}.metadata")
    for name in metadata if isinstance(metadata, dict) else ():
        if name in OF_MODEL:
            yield f"{key}.metadata.{name}", "is that of the evaluated model; remove it"
    lengths = metadata.get(LENGTHS) if isinstance(metadata, dict) else None
    for at, length in enumerate(lengths if isinstance(lengths, list) else ()):
        if type(length) is not int or length < 1:
            yield f"{key}.metadata.{LENGTHS}.{at}", f"{length} is not a number of tokens"
