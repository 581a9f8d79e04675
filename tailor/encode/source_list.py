"""The resolved sources of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tailor.data.token_store import SPLITS
from tailor.encode.formats import get_format
from tailor.encode.sources import Resolved, resolve
from tailor.spec.data import Data
from tailor.spec.methods.union import Method


@dataclass(frozen=True)
class Sources:
    """The resolved sources of a recipe."""

    train: tuple[Resolved, ...]
    evaluation: tuple[Resolved, ...]

    @classmethod
    def of(cls, data: Data, method: Method) -> Sources:
        """Resolve all sources. DataError for a source that is missing, empty or not in a format that the method reads."""
        train, evaluation = (
            tuple(
                resolve(source, f"data.{split}[{at}]", method)
                for at, source in enumerate(getattr(data, split))
            )
            for split in SPLITS
        )
        return cls(train, evaluation)

    def __iter__(self) -> Iterator[tuple[str, int, Resolved]]:
        """(split, index in the split's list, source) in the order of the recipe."""
        for split in SPLITS:
            for index, resolved in enumerate(getattr(self, split)):
                yield split, index, resolved

    @property
    def chats(self) -> bool:
        """Whether any source contains conversations, which need a chat template."""
        return any(get_format(resolved.format).is_chat for _, _, resolved in self)
