"""The texts of a record that make it what it is: of its prompt and of its answer, without system messages and tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailor.encode.content import REASONING_KEYS
from tailor.encode.records import Answer, Chat, Completion, Pair, Rated, Record, Relevance, Text
from tailor.encode.similarity.words import hashes


@dataclass(frozen=True)
class Texts:
    """prompt: what the user writes, or the query. answer: what is learned: answers, or the passages of a query."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class HashedTexts:
    """The texts of a record as hashes of their words: uint64 [W] each."""

    prompt: tuple[np.ndarray, ...]
    answer: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, texts: Texts) -> HashedTexts:
        return cls(tuple(map(hashes, texts.prompt)), tuple(map(hashes, texts.answer)))


def texts_of(record: Record) -> Texts:
    """The texts of a record. System messages and tools are left out, because many different rows share them."""
    match record:
        case Text():
            return Texts((), (record.text,))
        case Pair():
            chosen, rejected = _answer(record.chosen), _answer(record.rejected)
            return Texts(chosen.prompt, chosen.answer + rejected.answer)
        case Rated():
            return _answer(record.answer)
        case Relevance():
            passages = tuple(text for _, text in (*record.positives, *record.negatives))
            return Texts((record.query[1],), passages)
        case Chat() | Completion():
            return _answer(record)


def _answer(answer: Answer) -> Texts:
    if isinstance(answer, Completion):
        return Texts((answer.prompt,), (answer.response,))
    prompt, learned = [], []
    for message in answer.messages:
        if message["role"] == "assistant" and message.get("weight", 1):
            learned += _of_message(message)
        elif message["role"] != "system":
            prompt += _of_message(message)
    return Texts(tuple(prompt), tuple(learned))


def _of_message(message: Mapping[str, Any]) -> list[str]:
    found = [message.get("content"), *(message[key] for key in REASONING_KEYS if message.get(key))]
    if message.get("tool_calls"):
        found.append(json.dumps(message["tool_calls"], ensure_ascii=False, sort_keys=True, default=str))
    return [text for text in found if isinstance(text, str) and text]
