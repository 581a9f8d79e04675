"""`method` with `name: pretrain`."""

from __future__ import annotations

from typing import Literal

from tailor.spec.data import TEXTS
from tailor.spec.methods.base import MethodSection, Turns


class Pretrain(MethodSection):
    """Pretraining or continued pretraining: next-token loss on every token of plain texts."""

    implementation = "tailor.methods.next_token:build"
    metrics = ("perplexity", "token_accuracy")
    rules = "tailor.spec.rules.methods.pretrain"
    reads = (TEXTS,)
    token_loss = True

    name: Literal["pretrain"]
    """The method."""

    documents: Literal["join", "isolate"] = "join"
    """How documents fill rows of `data.max_length` tokens. `join`: shuffled documents, each with EOS at its end, form
    one stream that is cut into rows. Almost no padding, every token is trained on once, and a token attends to all
    earlier tokens of its row, also of other documents. `isolate`: as in `sft`; attention is limited to each document,
    and `data.pack` and `data.on_long` apply.
    """

    @property
    def encoded_turns(self) -> Turns:
        return "everything"

    @property
    def joins(self) -> bool:
        return self.documents == "join"
