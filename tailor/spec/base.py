"""Base classes: of every section of a file, and of a whole file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tailor.registry import Registry


class Section(BaseModel):
    """Base of all sections.

    Unknown keys are errors, instances are immutable, and a field's docstring is its help text.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class File(Section):
    """Base of whole files. The class variables are used in messages."""

    noun: ClassVar[str]
    """What a file of this kind is called, such as `recipe`."""
    folder: ClassVar[str]
    """Folder in which messages look for similar names when a file is missing."""
    example: ClassVar[str]
    """Two keys of the first level, as an example."""
    start: ClassVar[str]
    """How to get a first file of this kind."""
    secrets_location: ClassVar[str]
    """Where secrets belong, since they must not be in the file."""
    aliases: ClassVar[Mapping[str, str]]
    """Key of another tool -> the key here that has its meaning."""
    migration_hints: ClassVar[Mapping[str, str]]
    """Key of another tool -> what to write, where another key alone is not the answer."""
    sections: ClassVar[Mapping[str, str]] = {}
    """Section of another tool -> the section here that has its meaning."""

    @classmethod
    def value_hint(cls, key: str, value: str) -> str | None:
        """What to write for another tool's value of a key. None if it is not known."""
        return None


class NameOf:
    """Annotation of a key whose value is a name of a registry: built in, or registered by another package.

    The names are looked up when a value is checked, not when the class is defined.
    """

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        """others: further values that the key accepts, such as `auto`."""
        self._registry = registry
        self._others = others

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._others, *self._registry.names())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}

    def _check(self, value: str) -> str:
        # Built-in names first: finding those of other packages takes tens of milliseconds.
        if value not in self._others and value not in self._registry:
            raise ValueError(f"not one of {', '.join(self.names)}")
        return value
