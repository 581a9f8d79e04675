"""`method` with `name: pretrain`."""

from __future__ import annotations

from typing import Literal

from tailor.spec.data import TEXTS
from tailor.spec.methods.base import MethodSection, Turns


class Pretrain(MethodSection):
    """Pretraining, from new weights or going on: next-token loss on every token of plain texts."""

    implementation = "tailor.methods.next_token:build"
    rules = "tailor.spec.rules.methods.pretrain"
    reads = (TEXTS,)
    token_loss = True

    name: Literal["pretrain"]
    """The method."""

    documents: Literal["join", "isolate"] = "join"
    """How documents share rows of `data.max_length` tokens.

    `join`: shuffled documents, each ended by EOS, make one stream that is cut into rows. Every row but the last is
    full, every token is learned once, and a token sees all before it in its row, of other documents too.
    `isolate`: as in `sft`, so `data.pack` and `data.on_long` decide, and no document sees another.
    """

    @property
    def encoded_turns(self) -> Turns:
        return "everything"

    @property
    def joins(self) -> bool:
        return self.documents == "join"
