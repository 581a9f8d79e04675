"""Converts a checkpoint, sharded or not, to an adapter or model folder, as the run would write it at its end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from tailor.artifacts.average_models import average_checkpoints
from tailor.artifacts.inputs import open_input
from tailor.models.own_code import NOTHING, Trust
from tailor.store import Store
from tailor.store.scratch import scratch


def consolidate(url: str, folder: Path, trust: Trust = NOTHING) -> tuple[Literal["adapter", "model"], Store]:
    """Write the adapter or model of a checkpoint into `folder`, which must not exist. Returns its kind, and its run.

    One tensor is in memory at a time. A model is written in float32, the dtype of the trained weights.
    Raises ModelError and StoreError.
    """
    with scratch() as temporary, ExitStack() as stack:
        part = open_input(url, temporary / "adapter", stack, trust)
        if part.kind == "adapter":
            part.folder.rename(folder)
            return "adapter", part.run
        folder.mkdir()
        average_checkpoints(folder, [part], [1.0])
        return "model", part.run
