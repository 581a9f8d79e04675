"""unpaired, unpaired_text, unpaired_sharegpt, unpaired_alpaca: a prompt with one answer, and a label that says whether the answer is desirable (KTO)."""

from __future__ import annotations

from typing import Any

from tailor.encode.fields import (
    are_texts,
    first_turn_keys,
    kind_of,
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
from tailor.encode.records import Completion, Rated, Record, RowError
from tailor.spec.data import RATED

_LABELS: dict[Any, bool] = {
    True: True,
    False: False,
    **dict.fromkeys(("true", "1", "1.0"), True),
    **dict.fromkeys(("false", "0", "0.0"), False),
}
"""Includes the numbers 1 and 0, which equal True and False in Python. In CSV files labels are strings."""


def _messages(row: Row) -> Record:
    """An answer as messages, with an explicit prompt or as the last turn of a conversation, and its label."""
    messages, shared = conversation(row, "completion")
    return _rated(messages, shared, row, "completion")


def _sharegpt(row: Row) -> Record:
    """ShareGPT's conversation, whose last turn is the answer, and its label."""
    messages = with_system(row, to_turns(row["conversations"], "conversations"))
    return _rated(messages, len(messages) - 1, row, "conversations")


def _alpaca(row: Row) -> Record:
    """An instruction, rendered by the chat template, an answer and its label."""
    before = to_question(row)
    answer = {"role": "assistant", "content": nonempty(row["output"], "output")}
    return _rated([*before, answer], len(before), row, "output")


def _rated(messages: Messages, shared: int, row: Row, field: str) -> Rated:
    chat = to_chat(unweighted(messages, shared), row.get("tools"))
    check_answer(messages, shared, field)
    return Rated(chat, _label(row["label"]))


def _text(row: Row) -> Record:
    """A prompt and an answer as plain texts, without a chat template, with the label."""
    answer = Completion(to_text(row["prompt"], "prompt"), nonempty(row["completion"], "completion"))
    return Rated(answer, _label(row["label"]))


def _is_label(value: Any) -> bool:
    """Whether a value is a valid label."""
    return isinstance(value, bool | int | float | str) and _normal(value) in _LABELS


def _label(value: Any) -> bool:
    if not _is_label(value):
        raise RowError("wrong_type", f"`label` must be true or false, not {_shown(value)}")
    return _LABELS[_normal(value)]


def _normal(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) else kind_of(value)


_LABEL = {"label": ("label", "kto_tag")}

UNPAIRED = Format(
    "unpaired",
    RATED,
    fields={
        "prompt": ("prompt",),
        "completion": ("completion", "response", "messages", *CONVERSATION),
        **_LABEL,
        **SYSTEM,
        **TOOLS,
    },
    required=("completion", "label"),
    convert=_messages,
    form=lambda picked: (
        _is_label(picked["label"]) and are_messages(picked["completion"], picked.get("prompt"))
    ),
    is_chat=True,
    keys=MESSAGE_KEYS,
)
UNPAIRED_TEXT = Format(
    "unpaired_text",
    RATED,
    fields={"prompt": ("prompt",), "completion": ("completion", "response"), **_LABEL},
    required=("prompt", "completion", "label"),
    convert=_text,
    form=lambda picked: _is_label(picked["label"]) and are_texts([picked["prompt"], picked["completion"]]),
    unsupported=needs_template("unpaired_alpaca", output="completion"),
)
UNPAIRED_SHAREGPT = Format(
    "unpaired_sharegpt",
    RATED,
    fields={"conversations": CONVERSATION, **_LABEL, **SYSTEM, **TOOLS},
    required=("conversations", "label"),
    convert=_sharegpt,
    form=lambda picked: (
        _is_label(picked["label"]) and first_turn_keys(picked["conversations"]) >= {"from", "value"}
    ),
    is_chat=True,
    keys=TURN_KEYS,
)
UNPAIRED_ALPACA = Format(
    "unpaired_alpaca",
    RATED,
    fields={**own_columns("instruction", "input", "output", "history"), **_LABEL, **SYSTEM, **TOOLS},
    required=("instruction", "output", "label"),
    convert=_alpaca,
    form=lambda picked: _is_label(picked["label"]) and are_texts([picked["instruction"], picked["output"]]),
    is_chat=True,
)
