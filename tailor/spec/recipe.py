"""The whole recipe: its sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tailor.spec.base import File
from tailor.spec.data import Data
from tailor.spec.evaluate import Evaluate
from tailor.spec.export import Export
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.save import Save
from tailor.spec.scale import Scale
from tailor.spec.track import Track
from tailor.spec.train import Train
from tailor.spec.trainers.hints import ALIASES, MIGRATION_HINTS, SECTIONS, value_hint


class Recipe(File):
    """A training run, from the base model to the saved artifacts."""

    noun: ClassVar[str] = "recipe"
    folder: ClassVar[str] = "recipes"
    example: ClassVar[str] = "`model:` and `data:`"
    start: ClassVar[str] = "`tailor init` writes a first recipe"
    secrets_location: ClassVar[str] = "the environment (HF_TOKEN, AWS_…)"
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    migration_hints: ClassVar[Mapping[str, str]] = MIGRATION_HINTS
    sections: ClassVar[Mapping[str, str]] = SECTIONS

    @classmethod
    def value_hint(cls, key: str, value: str) -> str | None:
        return value_hint(key, value)

    model: Model
    data: Data
    method: Method
    optim: Optim
    train: Train = Train()
    scale: Scale = Scale()
    save: Save
    evaluate: Evaluate = Evaluate()
    track: Track = Track()
    export: Export = Export()
