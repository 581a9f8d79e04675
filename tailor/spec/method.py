"""`method`: what is learned. One class per method, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section


class Sft(Section):
    """Supervised fine-tuning: next-token loss on the supervised tokens."""

    name: Literal["sft"]
    """The method."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all assistant turns, the last one, or every token.

    Plain text is always supervised in full, and a completion row on its response unless this says `everything`.
    """


class Pretrain(Section):
    """Pretraining, from new weights or going on: next-token loss on every token of plain texts."""

    name: Literal["pretrain"]
    """The method."""

    documents: Literal["join", "isolate"] = "join"
    """How documents share rows of `data.max_length` tokens.

    `join`: shuffled documents, each ended by EOS, make one stream that is cut into rows. Every row but the last is
    full, every token is learned once, and a token sees all before it in its row, of other documents too.
    `isolate`: as in `sft`, so `data.pack` and `data.on_long` decide, and no document sees another.
    """

    @property
    def train_on(self) -> Literal["everything"]:
        """Every token is supervised, in `sft`'s words."""
        return "everything"


Method = Annotated[Sft | Pretrain, Field(discriminator="name")]
METHODS: tuple[type[Section], ...] = (Sft, Pretrain)


def joins(method: Section) -> bool:
    """Whether rows are cut from a stream of joined documents."""
    return isinstance(method, Pretrain) and method.documents == "join"
