"""Which rows have a question: one rule for evaluations and for measurements during training."""

from __future__ import annotations

from tailor.data.token_store import Example
from tailor.encode.tokenizer import Tokenizer


def has_question(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether the last answer is preceded by anything but the BOS and prefix tokens. A row of plain text has no question."""
    start = int(example.spans[-1][0])
    return not {int(token) for token in example.input_ids[:start]} <= {tokenizer.bos_id, *tokenizer.prefix}
