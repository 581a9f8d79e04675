"""The base of every section of a file, and of a whole file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


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
