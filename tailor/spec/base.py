"""The base of every section of a file, and of a whole file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tailor.registry import Registry


class Section(BaseModel):
    """Unknown keys are errors, values never change, and a field's docstring is its help text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class File(Section):
    """A whole file, and the words for it in messages."""

    noun: ClassVar[str]
    folder: ClassVar[str]
    """Where files of this kind are looked for when one is not found."""
    example: ClassVar[str]
    """Keys of its first level."""
    start: ClassVar[str]
    """How to get a first one."""
    where_secrets_stand: ClassVar[str]
    belongs: ClassVar[Mapping[str, str]]
    """Another tool's key -> the key here."""
    says: ClassVar[Mapping[str, str]]
    """Another tool's key -> what to write, where the key alone does not say it."""


class NameOf:
    """Annotation of a key whose value is a name of a registry: built in, or registered by another package.

    The names are asked for when a value is checked, not when the class is made.
    """

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        """others: what the key may be besides."""
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
        # Built-in names first: those of other packages take tens of milliseconds to find.
        if value not in self._others and value not in self._registry:
            raise ValueError(f"not one of {', '.join(self.names)}")
        return value
