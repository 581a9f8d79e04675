"""Access to the plain values of a file, for the rules between keys."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.registry import METHODS
from tailor.spec.reading.source import Document, Path, dotted

Finding = tuple[str, str]
"""A key, and what is wrong with it given the other keys."""


Conflict = tuple[str, str, str]
"""Two keys that cannot be used together, and why. The problem is reported at the later key and names the other."""


class Keys:
    """The plain values of a file, without those that are wrong by themselves."""

    def __init__(self, values: Any, wrong: set[str]) -> None:
        self._document = Document("", values)
        self._wrong = wrong

    def __call__(self, key: str) -> Any:
        """The value. None if the key is absent, null or wrong. Lists of plain values come without their wrong ones."""
        value = None if self.is_wrong(key) else self._document.get(path_of(key))
        return self._without_wrong(key, value) if isinstance(value, list) and self._wrong else value

    def _without_wrong(self, key: str, values: list[Any]) -> list[Any]:
        """A list of sections stays whole, because its elements are named by their position."""
        right = [value for at, value in enumerate(values) if not self.is_wrong(f"{key}.{at}")]
        return values if any(isinstance(value, dict) for value in right) else right

    @cached_property
    def method(self) -> MethodSection | None:
        """The method's section, with defaults for keys that are absent or wrong. None if `method.name` is wrong."""
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
        """Whether the key is in the file, with any value."""
        return path_of(key) in self._document.keys or self._document.get(path_of(key), ...) is not ...

    def absent(self, key: str) -> bool:
        """Whether the key has no effective value: it is absent, null, false or an empty list."""
        return not self.is_wrong(key) and self._document.get(path_of(key)) in (None, False, [])

    def sources(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The sources of `data.train` or `data.evaluation`, as (key, values)."""
        sources = self(key)
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, dict):
                yield f"{key}.{index}", source


def path_of(key: str) -> Path:
    return tuple(int(step) if step.isdecimal() else step for step in key.split("."))
