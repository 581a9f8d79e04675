"""completion: a prompt and its response, without a chat template."""

from __future__ import annotations

from tailor.encode.content import refuse_placeholder
from tailor.encode.fields import to_text
from tailor.encode.formats.answers import needs_template
from tailor.encode.formats.base import Format, Row
from tailor.encode.records import Completion, Record, RowError
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    response = to_text(row["response"], "response")
    if not response.strip():
        raise RowError("empty_answer", "`response` is empty")
    prompt = to_text(row["prompt"], "prompt")
    refuse_placeholder(prompt)
    return Completion(prompt, response)


COMPLETION = Format(
    "completion",
    EXAMPLES,
    fields={"prompt": ("prompt",), "response": ("response", "completion")},
    required=("prompt", "response"),
    convert=_convert,
    unsupported=needs_template("alpaca", output="response"),
)
