"""preference, preference_text, preference_sharegpt, preference_alpaca: a prompt with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.fields import (
    first_turn_keys,
    to_chat,
    to_question,
    to_text,
    to_turns,
    with_system,
)
from tailor.encode.formats.answers import (
    Messages,
    are_messages,
    check_answer,
    conversation,
    count_shared,
    is_same,
    join,
    needs_template,
    nonempty,
    unweighted,
)
from tailor.encode.formats.base import (
    CONVERSATION,
    MESSAGE_KEYS,
    SYSTEM,
    TOOLS,
    TURN_KEYS,
    Format,
    Row,
    own_columns,
)
from tailor.encode.records import Completion, Pair, Record, RowError
from tailor.spec.data import PAIRS


def _messages(row: Row) -> Record:
    """Two answers as messages, with an explicit prompt (a text or messages), or two conversations that start the same."""
    sides = [conversation(row, field)[0] for field in ("chosen", "rejected")]
    return _pair(*sides, shared=count_shared(*sides), tools=row.get("tools"))


def _text(row: Row) -> Record:
    """A prompt and two answers as plain texts, without a chat template."""
    prompt = to_text(row["prompt"], "prompt")
    chosen, rejected = (nonempty(row[field], field) for field in ("chosen", "rejected"))
    if chosen == rejected:
        raise _same()
    return Pair(Completion(prompt, chosen), Completion(prompt, rejected))


def _sharegpt(row: Row) -> Record:
    """A ShareGPT conversation with two last turns, or two ShareGPT conversations."""
    before: Messages = []
    if row.get("conversations") is not None:
        before = to_turns(row["conversations"], "conversations")
    sides = []
    for field in ("chosen", "rejected"):
        value = row[field]
        if isinstance(value, str):
            turns = [_answer(value, field)]
        else:
            turns = to_turns([value] if isinstance(value, Mapping) else value, field)
        sides.append(with_system(row, join(before, turns)))
    return _pair(*sides, shared=count_shared(*sides), tools=row.get("tools"))


def _alpaca(row: Row) -> Record:
    """An Alpaca instruction and two answers as texts, rendered by the chat template."""
    before = to_question(row)
    chosen, rejected = (_answer(row[field], field) for field in ("chosen", "rejected"))
    return _pair([*before, chosen], [*before, rejected], shared=len(before), tools=row.get("tools"))


def _pair(chosen: Messages, rejected: Messages, *, shared: int, tools: Any) -> Pair:
    if len(chosen) == len(rejected) and all(map(is_same, chosen, rejected)):
        raise _same()
    for field, messages in (("chosen", chosen), ("rejected", rejected)):
        check_answer(messages, shared, field)
    if not chosen[shared]["role"] == rejected[shared]["role"] == "assistant":
        what = "system texts" if "system" in (chosen[shared]["role"], rejected[shared]["role"]) else "prompts"
        raise RowError("two_prompts", f"the chosen and the rejected answer have different {what}")
    return Pair(*(to_chat(unweighted(side, shared), tools) for side in (chosen, rejected)))


def _answer(value: Any, field: str) -> dict[str, Any]:
    return {"role": "assistant", "content": nonempty(value, field)}


def _same() -> RowError:
    return RowError("same_answers", "the chosen and the rejected answer are equal")


_ANSWERS = {field: (field, f"{field}_messages") for field in ("chosen", "rejected")}

PREFERENCE = Format(
    "preference",
    PAIRS,
    fields={"prompt": ("prompt", "messages", *CONVERSATION), **_ANSWERS, **SYSTEM, **TOOLS},
    required=("chosen", "rejected"),
    convert=_messages,
    form=lambda picked: are_messages(picked["chosen"], picked.get("prompt")),
    is_chat=True,
    keys=MESSAGE_KEYS,
)
PREFERENCE_TEXT = Format(
    "preference_text",
    PAIRS,
    fields=own_columns("prompt", "chosen", "rejected"),
    required=("prompt", "chosen", "rejected"),
    convert=_text,
    unsupported=needs_template("preference_alpaca"),
)
PREFERENCE_SHAREGPT = Format(
    "preference_sharegpt",
    PAIRS,
    fields={"conversations": CONVERSATION, **_ANSWERS, **SYSTEM, **TOOLS},
    required=("chosen", "rejected"),
    convert=_sharegpt,
    form=lambda picked: first_turn_keys(picked.get("conversations", picked["chosen"])) >= {"from", "value"},
    is_chat=True,
    keys=TURN_KEYS,
)
PREFERENCE_ALPACA = Format(
    "preference_alpaca",
    PAIRS,
    fields={**own_columns("instruction", "input", "chosen", "rejected", "history"), **SYSTEM, **TOOLS},
    required=("instruction", "chosen", "rejected"),
    convert=_alpaca,
    is_chat=True,
)
