"""Rows of preference data: a prompt with two answers, or with one that is labelled.

Every answer becomes a whole conversation, or a prompt with its completion. The assistant's turns of the prompt
have weight 0, so that the rules of supervised fine-tuning supervise exactly the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.fields import (
    kind_of,
    to_chat,
    to_list,
    to_message,
    to_question,
    to_system,
    to_text,
    to_turns,
)
from tailor.encode.records import Completion, Pair, Rated, Record, RowError

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_LABELS: dict[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Also 1 and 0 as numbers, which equal True and False. CSV files have texts."""


def messages(row: Row) -> Record:
    """Answers as messages, with an explicit prompt (a text or messages) or as whole conversations that share one."""
    sides = [_whole(row, field) for field in ("chosen", "rejected")]
    return _pair(*sides, shared=_shared(*sides), tools=row.get("tools"))


def sharegpt(row: Row) -> Record:
    """ShareGPT's conversation and two last turns; or two conversations."""
    before = to_system(row)
    if row.get("conversations") is not None:
        before += to_turns(row["conversations"], "conversations")
    sides = []
    for field in ("chosen", "rejected"):
        value = row[field]
        if isinstance(value, str):
            sides.append([*before, _answer(value, field)])
        else:
            sides.append([*before, *to_turns([value] if isinstance(value, Mapping) else value, field)])
    return _pair(*sides, shared=_shared(*sides), tools=row.get("tools"))


def alpaca(row: Row) -> Record:
    """An instruction, rendered by the chat template, and two answers as texts."""
    before = to_question(row)
    chosen, rejected = (_answer(row[field], field) for field in ("chosen", "rejected"))
    return _pair([*before, chosen], [*before, rejected], shared=len(before), tools=None)


def texts(row: Row) -> Record:
    """Texts without a chat template."""
    prompt = to_text(row["prompt"], "prompt")
    chosen, rejected = (_nonempty(row[field], field) for field in ("chosen", "rejected"))
    if chosen == rejected:
        raise _same()
    return Pair(Completion(prompt, chosen), Completion(prompt, rejected))


def rated_messages(row: Row) -> Record:
    """An answer as messages, with an explicit prompt or as the last turn of a conversation, and its label."""
    conversation = _whole(row, "completion")
    prompt = row.get("prompt")
    given = len(to_list(prompt, "prompt")) if prompt is not None and not isinstance(prompt, str) else 0
    system = 1 if row.get("system") and given else 0
    shared = given + system or len(conversation) - 1
    chat = to_chat(_unweighted(conversation, shared), row.get("tools"))
    _check_answer(conversation, shared, "completion")
    return Rated(chat, _label(row["label"]))


def rated_text(row: Row) -> Record:
    """A text without a chat template, and its label."""
    answer = Completion(to_text(row["prompt"], "prompt"), _nonempty(row["completion"], "completion"))
    return Rated(answer, _label(row["label"]))


def is_label(value: Any) -> bool:
    """Whether a value says desirable or undesirable."""
    return isinstance(value, bool | int | str) and _normal(value) in _LABELS


def _label(value: Any) -> bool:
    if not is_label(value):
        raise RowError("wrong_type", f"`label` must be true or false, not {_shown(value)}")
    return _LABELS[_normal(value)]


def _normal(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) else kind_of(value)


def _whole(row: Row, field: str) -> Messages:
    """The conversation that ends with an answer: the prompt is put before it, unless it stands there already."""
    value, prompt = row[field], row.get("prompt")
    turns = [
        to_message(entry) for entry in ([value] if isinstance(value, Mapping) else to_list(value, field))
    ]
    if isinstance(prompt, str):
        # A whole conversation repeats its prompt, which is then only a label of the row.
        if not any(turn["role"] == "user" for turn in turns):
            turns = [{"role": "user", "content": prompt}, *turns]
    elif prompt is not None:
        before = [to_message(entry) for entry in to_list(prompt, "prompt")]
        turns = turns if turns[: len(before)] == before else before + turns
    return to_system(row) + turns


def _pair(chosen: Messages, rejected: Messages, *, shared: int, tools: Any) -> Pair:
    if chosen == rejected:
        raise _same()
    for field, conversation in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(conversation, shared, field)
    return Pair(*(to_chat(_unweighted(side, shared), tools) for side in (chosen, rejected)))


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages the two conversations begin with together."""
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    return count


def _unweighted(conversation: Messages, count: int) -> Messages:
    """The first `count` messages are the prompt: none of them is learned."""
    return [
        {**turn, "weight": 0} if at < count and turn["role"] == "assistant" else turn
        for at, turn in enumerate(conversation)
    ]


def _check_answer(conversation: Messages, shared: int, field: str) -> None:
    if len(conversation) <= shared or conversation[-1]["role"] != "assistant":
        raise RowError("no_answer", f"`{field}` does not end with an assistant's turn of its own")


def _answer(value: Any, field: str) -> dict[str, Any]:
    return {"role": "assistant", "content": _nonempty(value, field)}


def _nonempty(value: Any, field: str) -> str:
    answer = to_text(value, field)
    if not answer:
        raise RowError("empty", f"`{field}` is empty")
    return answer


def _same() -> RowError:
    return RowError("same_answers", "the chosen and the rejected answer are the same")
