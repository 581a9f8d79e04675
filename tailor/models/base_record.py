"""`base.json` in an adapter's folder: the base model of the adapter, with the dtype and quantization used in training.

An adapter is valid only for the weights that it was trained on. PEFT's own files name the base's path only: the weights
at that path may have changed, and the quantization is not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tailor.errors import ModelError
from tailor.layout import BASE_RECORD
from tailor.models import files
from tailor.spec.model import Model, Quantize
from tailor.spec.rope import Rope
from tailor.store.json_files import JsonFile, made


@dataclass(frozen=True)
class BaseRecord:
    """The base model of an adapter, as it was loaded for training."""

    path: Annotated[str, Field(min_length=1)]
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    """Of the frozen weights that are not quantized: float32, bfloat16 or float16."""
    quantize: Quantize | None
    weights: str | None
    """`models.files.fingerprint` of the base, if known."""
    rope: Rope | None = None
    """The recipe's `model.rope`."""
    add_tokens: list[str] = field(default_factory=list)
    """The recipe's `model.add_tokens`."""
    dequantize: bool = False
    """The recipe's `model.dequantize`."""

    def write(self, folder: Path) -> None:
        parts = {"quantize": self.quantize, "rope": self.rope}
        values = {**vars(self), **{name: part and part.model_dump() for name, part in parts.items()}}
        (folder / BASE_RECORD).write_text(RECORD_FILE.text(values))

    @classmethod
    def read(cls, folder: Path) -> BaseRecord | None:
        """Read the record in an adapter's folder; None if there is none (an adapter that PEFT wrote)."""
        if not (folder / BASE_RECORD).is_file():
            return None
        return made(cls, RECORD_FILE.read_path(folder / BASE_RECORD))  # records of older versions lack some

    @classmethod
    def of(cls, model: Model, frozen_dtype: str) -> BaseRecord:
        """The record of a model that was loaded on this machine. frozen_dtype: of its frozen weights."""
        folder = files.cached_folder(model.path, model.revision)
        weights = files.fingerprint(folder) if folder else None
        return cls(
            model.path,
            model.revision,
            frozen_dtype,
            model.quantize,
            weights,
            model.rope,
            model.add_tokens,
            model.dequantize,
        )

    def check(self, folder: Path, url: str, *, hint: str) -> None:
        """Raise ModelError, with `hint`, if the weights in `folder` are not those that the adapter at `url` was trained on."""
        if self.weights is not None and files.fingerprint(folder) != self.weights:
            raise ModelError(
                f"{folder} is not the base of the adapter at {url}: its weights differ from those that the adapter was trained on",
                hint=hint,
            )


RECORD_FILE = JsonFile(BaseRecord, "restore the file that the training run wrote, or copy the adapter again")
