"""`base.json` beside an adapter: which base it belongs to, and how training held that base's weights.

An adapter is right only on the weights that it was trained on. PEFT's own files name the base's path; what lies
there may have changed since, and says nothing of a quantization.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.errors import ModelError
from tailor.layout import BASE_RECORD
from tailor.models import files
from tailor.spec.model import Model, Quantize
from tailor.spec.rope import Rope


@dataclass(frozen=True)
class BaseRecord:
    """The base of an adapter, as training held it."""

    path: str
    revision: str | None
    dtype: str
    """Of the frozen weights that are not quantized: float32, bfloat16 or float16."""
    quantize: Quantize | None
    weights: str | None
    """`models.files.fingerprint` of the base, where it is known."""
    rope: Rope | None = None
    """The rotary positions that it was given."""

    def write(self, folder: Path) -> None:
        parts = {"quantize": self.quantize, "rope": self.rope}
        values = {**vars(self), **{name: part and part.model_dump() for name, part in parts.items()}}
        (folder / BASE_RECORD).write_text(json.dumps(values, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BaseRecord | None:
        """What stands beside the adapter in `folder`; None for PEFT's own folders."""
        if not (folder / BASE_RECORD).is_file():
            return None
        values: dict[str, Any] = json.loads((folder / BASE_RECORD).read_text())
        # As a recipe has them, so that they are checked alike. Adapters of older versions have no rope.
        model = Model.model_validate({key: values.pop(key, None) for key in ("path", "quantize", "rope")})
        return cls(path=model.path, quantize=model.quantize, rope=model.rope, **values)

    @classmethod
    def of(cls, model: Model, frozen_dtype: str) -> BaseRecord:
        """Of a model that was loaded in this process."""
        found = files.cached_folder(model.path, model.revision)
        weights = files.fingerprint(found) if found else None
        return cls(model.path, model.revision, frozen_dtype, model.quantize, weights, model.rope)

    def check(self, folder: Path, url: str, *, hint: str) -> None:
        """ModelError, with `hint`, when the weights in `folder` are not those that the adapter at `url` was trained on."""
        if self.weights is not None and files.fingerprint(folder) != self.weights:
            raise ModelError(
                f"{folder} is not the base of the adapter at {url}: its weights are others than the adapter was trained on",
                hint=hint,
            )
