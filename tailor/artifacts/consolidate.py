"""A checkpoint, whole or in parts, as the folder of weights that its run would have ended with."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from tailor.artifacts.average_models import average_checkpoints
from tailor.artifacts.inputs import open_input
from tailor.store import Store


def consolidate(url: str, folder: Path) -> tuple[Literal["adapter", "model"], Store]:
    """Write a checkpoint's adapter or model into `folder`, which is not there yet; what it is, and its run.

    Tensor by tensor, so that no more than one is in memory. A model is in float32, as it was trained.
    Raises ModelError and StoreError.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        part = open_input(url, Path(scratch) / "adapter", stack)
        if part.kind == "adapter":
            part.folder.rename(folder)
            return "adapter", part.run
        folder.mkdir()
        average_checkpoints(folder, [part], [1.0])
        return "model", part.run
