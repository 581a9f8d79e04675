"""The order of turns in conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally


class TurnOrder(Check):
    """Roles that a conversation does not have in this order."""

    def row(self, row: Row, tally: Tally) -> None:
        if row.messages and (problem := _problem(row.messages)):
            tally.add("turn_order", row, problem)

    def findings(self, examined: Examined) -> Iterator[Finding]:
        yield from finding_of(
            "turn_order",
            "warning",
            "conversations with turns in an unusual order",
            examined.found.get("turn_order"),
        )


def _problem(messages: Sequence[dict[str, object]]) -> str:
    """The first turn that is out of order, as a text; empty when there is none."""
    before, called = "", False
    for at, message in enumerate(messages, start=1):
        role = str(message["role"])
        if role == "system" and at > 1:
            return f"message {at} is a system message after the start"
        if role == "tool" and not called:
            return f"message {at} is the result of a tool that no turn called"
        if role in ("user", "assistant") and role == before:
            return f"messages {at - 1} and {at} are both of the {role}"
        if role == "assistant" and before in ("", "system"):
            return "the conversation begins with the assistant"
        called = called or bool(message.get("tool_calls"))
        before = role
    return f"the conversation ends with the {before}" if before != "assistant" else ""
