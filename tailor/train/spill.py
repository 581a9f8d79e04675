"""Tensors that live in files, so that a model larger than memory can be held together and written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch


def spilled(
    tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The same tensors, each backed by a file in `folder` that goes with it. Floating ones in `dtype`, if given.

    They take room on the disk, not in memory: the system writes them out as it needs the memory.
    """
    return {
        name: _in_file(tensor, folder, dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors
    }


def _in_file(tensor: torch.Tensor, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    if tensor.numel() == 0:
        return tensor.to(dtype)
    handle, path = tempfile.mkstemp(prefix=".spill-", dir=folder)
    os.close(handle)
    file = torch.from_file(path, shared=True, size=tensor.numel(), dtype=dtype)
    os.unlink(path)  # the mapping keeps it until the tensor goes
    return file.view(tensor.shape).copy_(tensor)
