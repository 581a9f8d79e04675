"""The plain values of a file as the rules between keys see them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.registry import METHODS
from tailor.spec.reading.source import Document, Path, dotted

Finding = tuple[str, str]
"""A key, and what is wrong with it beside the others."""


Conflict = tuple[str, str, str]
"""Two keys that do not go together, and why. The problem stands at the later one and names the other."""


class Keys:
    """The plain values, without those that are wrong by themselves."""

    def __init__(self, values: Any, wrong: set[str]) -> None:
        self._document = Document("", values)
        self._wrong = wrong

    def __call__(self, key: str) -> Any:
        """The value; None where the key is absent, null or wrong. Lists of plain values come without wrong ones."""
        value = None if self.is_wrong(key) else self._document.get(path_of(key))
        return self._without_wrong(key, value) if isinstance(value, list) and self._wrong else value

    def _without_wrong(self, key: str, values: list[Any]) -> list[Any]:
        """A list of sections stays whole: its elements are named by their position."""
        right = [value for at, value in enumerate(values) if not self.is_wrong(f"{key}.{at}")]
        return values if any(isinstance(value, dict) for value in right) else right

    @cached_property
    def method(self) -> MethodSection | None:
        """The method's section, with the defaults of keys that are absent or wrong. None without a right name."""
        name = self("method.name")
        if name not in METHODS:
            return None
        section = METHODS.get(name)
        given = {field: self(f"method.{field}") for field in section.model_fields}
        return section.model_construct(
            **{field: value for field, value in given.items() if value is not None}
        )

    def is_wrong(self, key: str) -> bool:
        path = path_of(key)
        return any(dotted(path[:depth]) in self._wrong for depth in range(1, len(path) + 1))

    def given(self, key: str) -> bool:
        """The key stands in the file, whatever its value."""
        return path_of(key) in self._document.keys or self._document.get(path_of(key), ...) is not ...

    def absent(self, key: str) -> bool:
        """The key is neither given nor meant: absent, null, false or an empty list."""
        return not self.is_wrong(key) and self._document.get(path_of(key)) in (None, False, [])

    def sources(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The sources of `data.train` or `data.evaluation` with their keys."""
        sources = self(key)
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, dict):
                yield f"{key}.{index}", source


def path_of(key: str) -> Path:
    return tuple(int(step) if step.isdecimal() else step for step in key.split("."))
