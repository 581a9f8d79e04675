"""Rules of the sources of rows, and of the batches that are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tailor.spec.data import FORMAT_KINDS, RELEVANCE, builtin_formats, is_read
from tailor.spec.methods.registry import METHODS
from tailor.spec.rules.keys import Conflict, Finding, Keys

SECTIONS = ("data.train", "data.evaluation", "data.decontaminate")


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Settings of the batches that a method's own batches exclude."""
    method = keys.method
    by_tokens, sorted_rows = keys("data.weight_by") == "tokens", keys("train.order") == "short_to_long"
    for key, source in keys.sources("data.train") if by_tokens else ():
        if source.get("samples") is not None:
            yield (
                f"{key}.samples",
                "data.weight_by",
                "samples counts rows, and the sources are mixed by tokens",
            )
    if method is None:
        return
    if method.streams is not None and by_tokens:
        yield (
            "data.weight_by",
            "method.name",
            f"a step of {method.name} is a number of queries and sequences, not of tokens; set data.weight_by: rows",
        )
    if method.streams is not None and sorted_rows:
        yield (
            "train.order",
            "method.name",
            f"a step of {method.name} has queries of one dataset or source, in random order; set train.order: shuffled",
        )
    if method.joins and sorted_rows and not keys.is_wrong("method.documents"):
        yield (
            "train.order",
            "method.documents",
            "joined documents fill every row to data.max_length, so all rows are equally long; set method.documents: isolate",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Rows of a kind that the method does not read, and sources that are listed twice."""
    yield from _kinds(keys)
    for section in SECTIONS:
        seen: dict[str, str] = {}
        for key, source in keys.sources(section):
            first = seen.setdefault(json.dumps(source, sort_keys=True), key)
            if first != key:
                hint = "to show rows more often, set weight" if section == "data.train" else "remove one"
                yield key, f"is the same source as {first}; {hint}"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    if keys("data.weight_by") == "tokens" and len(list(keys.sources("data.train"))) == 1:
        yield "data.weight_by", "has no effect with one source, which has all tokens; remove it"
    for key, source in [found for section in SECTIONS for found in keys.sources(section)]:
        if keys(f"{key}.weight") is not None and key.startswith("data.evaluation"):
            yield f"{key}.weight", "has no effect: every evaluation row is used once; remove it"
        if keys(f"{key}.samples") is not None and key.startswith("data.evaluation"):
            yield (
                f"{key}.samples",
                "has no effect: every evaluation row is used once; remove it, or set limit",
            )
        if source.get("samples") is not None and keys(f"{key}.weight") is not None:
            yield f"{key}.weight", "has no effect with samples, the number of rows of an epoch; remove one"
        relevance = keys.method is None or RELEVANCE in keys.method.reads
        for name in ("query_instruction", "passage_instruction"):
            if source.get(name) is not None and not relevance:
                yield f"{key}.{name}", "has no effect: only gritlm and rerank read queries and passages"
        streams = keys.method.streams if keys.method is not None else None
        by_dataset = streams is not None and streams.embeds and streams.by == "dataset"
        if source.get("dataset_column") is not None and keys.method is not None and not by_dataset:
            yield (
                f"{key}.dataset_column",
                "has no effect: only the batches of gritlm with method.batch_by: dataset are of one dataset",
            )
        path = keys(f"{key}.path")
        if isinstance(path, str) and "://" in path and not path.startswith("hf://"):
            for name in ("subset", "split"):
                if source.get(name) is not None:
                    yield f"{key}.{name}", "has no effect: it is for Hugging Face datasets (hf://…)"


def _kinds(keys: Keys) -> Iterator[Finding]:
    """The kinds of the rows must be those that the method reads."""
    name = keys("method.name")
    if name not in METHODS:
        return
    reads = METHODS.get(name).reads
    for key, _ in [*keys.sources("data.train"), *keys.sources("data.evaluation")]:
        fmt = keys(f"{key}.format")
        # The kind of another package's format is known only when preparation imports it.
        kind = FORMAT_KINDS.get(fmt)
        if kind is not None and not is_read(kind, reads):
            formats = ", ".join(builtin_formats(reads))
            yield f"{key}.format", f"method {name} cannot read {fmt} rows; it reads {formats}"
