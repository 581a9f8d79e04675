"""unpaired, unpaired_text: a prompt with one answer, and a label that says whether the answer is desirable (KTO)."""

from __future__ import annotations

from typing import Any

from tailor.encode.fields import are_texts, first_keys, kind_of, to_chat, to_list, to_text
from tailor.encode.formats.answers import check_answer, conversation, nonempty, unweighted
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.records import Completion, Rated, Record, RowError
from tailor.spec.data import RATED

_LABELS: dict[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Includes the numbers 1 and 0, which equal True and False in Python. In CSV files labels are strings."""


def _messages(row: Row) -> Record:
    """An answer as messages, with an explicit prompt or as the last turn of a conversation, with its label."""
    messages = conversation(row, "completion")
    prompt = row.get("prompt")
    given = len(to_list(prompt, "prompt")) if prompt is not None and not isinstance(prompt, str) else 0
    system = 1 if row.get("system") and given else 0
    shared = given + system or len(messages) - 1
    chat = to_chat(unweighted(messages, shared), row.get("tools"))
    check_answer(messages, shared, "completion")
    return Rated(chat, _label(row["label"]))


def _text(row: Row) -> Record:
    """A prompt and an answer as plain texts, without a chat template, with the label."""
    answer = Completion(to_text(row["prompt"], "prompt"), nonempty(row["completion"], "completion"))
    return Rated(answer, _label(row["label"]))


def _is_label(value: Any) -> bool:
    """Whether a value is a valid label."""
    return isinstance(value, bool | int | str) and _normal(value) in _LABELS


def _label(value: Any) -> bool:
    if not _is_label(value):
        raise RowError("wrong_type", f"`label` must be true or false, not {_shown(value)}")
    return _LABELS[_normal(value)]


def _normal(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) else kind_of(value)


UNPAIRED = Format(
    "unpaired",
    RATED,
    fields={
        "prompt": ("prompt",),
        "completion": ("completion", "response", "messages"),
        **own_columns("label", "tools", "system"),
    },
    required=("completion", "label"),
    convert=_messages,
    form=lambda picked: _is_label(picked["label"]) and first_keys(picked["completion"]) >= {"role"},
    is_chat=True,
)
UNPAIRED_TEXT = Format(
    "unpaired_text",
    RATED,
    fields={"prompt": ("prompt",), "completion": ("completion", "response"), "label": ("label",)},
    required=("prompt", "completion", "label"),
    convert=_text,
    form=lambda picked: _is_label(picked["label"]) and are_texts([picked["prompt"], picked["completion"]]),
)
