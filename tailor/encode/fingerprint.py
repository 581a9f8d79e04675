"""The name of a token store: a hash of everything that determines its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from tailor.data.token_store import SPLITS
from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.formats import code_of
from tailor.encode.formats.passages import MAX_SCORE
from tailor.encode.source_list import Sources
from tailor.encode.sources import content_of, find_files, token_keys
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import Scorer
from tailor.spec.data import Benchmark, Chunk, Data, Retrieve
from tailor.spec.methods.union import Method

ENCODE_VERSION = 10
"""Part of every fingerprint. Increase it when a change of the code gives other tokens, or other columns, for the same rows."""


def fingerprint_of(
    data: Data,
    method: Method,
    tokenizer: Tokenizer,
    sources: Sources,
    scorer: Scorer | None,
    text_format: TextFormat,
    splits: Sequence[str] = SPLITS,
) -> str:
    """A hash of everything that determines the tokens: rows, tokenizer, template, embedder, code version and settings.

    splits: the splits whose sources are included.
    """
    import xxhash

    template = tokenizer.require_template() if sources.chats else None
    limits, texts = method.answer_limits, method.text_limits(data.max_length)
    facts = {
        "encode_version": ENCODE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "template": None if template is None else [template.name, template.text, template.tool_use],
        "train_on": method.encoded_turns,
        "limits": None if limits is None else [limits.prompt, limits.completion],
        "holdout": data.holdout,
        "max_length": None if method.joins else data.max_length,
        "on_long": None if method.joins else data.on_long,
        "sources": [
            [split, token_keys(resolved.source), resolved.format, resolved.contents]
            for split, _, resolved in sources
            if split in splits
        ],
    }
    if data.min_length is not None:
        facts["min_length"] = data.min_length
    if data.deduplicate is not None:
        facts["deduplicate"] = data.deduplicate
    if data.decontaminate:
        facts["decontaminate"] = _contents(data.decontaminate)
    if template is not None and data.reasoning == "drop":
        facts["reasoning"] = "drop"
    if not method.joins and data.on_long in ("chunk", "retrieve"):
        settings = data.chunk or Chunk() if data.on_long == "chunk" else data.retrieve or Retrieve()
        # Without the embedder's path: its content is part of the scorer's identity below.
        facts[data.on_long] = settings.model_dump(exclude={"embedder", "query_instruction"})
    if limits is not None and data.holdout is not None:
        # Before this key existed, answers with the same prompt could be separated by the holdout.
        facts["held_out_by"] = "prompt"
    formats = {resolved.format for split, _, resolved in sources if split in splits}
    if registered := {name: code for name in formats if (code := code_of(name)) is not None}:
        facts["formats"] = registered
    if template is not None and template.date is not None:
        facts["date"] = template.date
    if scorer is not None:
        facts["scorer"] = scorer.identity
    if texts is not None:
        facts["texts"] = [texts.query, texts.passage, texts.negatives, *astuple(GRITLM)[:3]]
        if text_format != GRITLM:
            facts["text_format"] = asdict(text_format)
        if texts.scores:
            facts["scores"] = MAX_SCORE
        if texts.pairs:
            facts["pairs"] = True
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _contents(benchmarks: Sequence[Benchmark]) -> list[list[Any]]:
    """Settings, files and file contents of the benchmarks."""
    found = []
    for at, benchmark in enumerate(benchmarks):
        parts = find_files(benchmark, f"data.decontaminate[{at}]")
        found.append([benchmark.model_dump(), [[part.label, content_of(part)] for part in parts]])
    return found
