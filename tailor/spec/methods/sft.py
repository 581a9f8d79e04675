"""`method` with `name: sft`."""

from __future__ import annotations

from typing import Literal

from tailor.spec.data import EXAMPLES
from tailor.spec.methods.base import MethodSection, Turns


class Sft(MethodSection):
    """Supervised fine-tuning (SFT): next-token loss on the supervised tokens."""

    implementation = "tailor.methods.next_token:build"
    metrics = ("perplexity", "token_accuracy")
    reads = (EXAMPLES,)
    token_loss = True

    name: Literal["sft"]
    """The method."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all `assistant` turns, the `last_assistant` turn, or
    `everything`. In a completion row it is the response, or all tokens with `everything`. Plain text is always
    supervised in full.
    """

    @property
    def supervised_turns(self) -> Turns:
        return self.train_on
