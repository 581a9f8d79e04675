"""Which rows have a question: the one rule for evaluations and for measurements while a model trains."""

from __future__ import annotations

from tailor.data.token_store import Example
from tailor.encode.tokenizer import Tokenizer


def has_question(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether anything but a BOS precedes the last answer. Plain text is all answer."""
    start = int(example.spans[-1][0])
    return not {int(token) for token in example.input_ids[:start]} <= {tokenizer.bos_id, *tokenizer.prefix}
