"""Reads and writes safetensors files one tensor at a time, so that only one tensor is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.layout import MODEL_INDEX
from tailor.models.files import Stored, read_header, weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")


class Reader:
    """Reads tensors by name from one or more safetensors files. Use it as a context manager."""

    def __init__(self, files: list[Path]) -> None:
        self._stack = ExitStack()
        self.layout: dict[str, list[str]] = {}
        """File name -> names of its tensors, in order."""
        self._stored: dict[str, tuple[Any, Stored]] = {}
        with ExitStack() as opening:
            for path in files:
                file = opening.enter_context(path.open("rb"))
                tensors, _ = read_header(file, str(path))
                self.layout[path.name] = list(tensors)
                for name, stored in tensors.items():
                    if stored.dtype not in DTYPES:
                        raise ModelError(
                            f"{path}: {name} has the dtype {stored.dtype}, which cannot be merged or averaged",
                            hint="use the model in 16-bit or 32-bit precision",
                        )
                    self._stored[name] = (file, stored)
            self._stack = opening.pop_all()

    @classmethod
    def of_model(cls, folder: Path) -> Reader:
        """Open the weights of a model folder. ModelError when a file is missing or damaged."""
        return cls(weight_files(folder))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def about(self, name: str) -> Stored:
        """Dtype, shape and byte range of a tensor, from the file header."""
        return self._stored[name][1]

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor into memory (not memory-mapped). ModelError when the file is truncated."""
        file, stored = self._stored[name]
        dtype = DTYPES[stored.dtype]
        if stored.numel == 0:
            return torch.empty(stored.shape, dtype=dtype)
        content = bytearray(stored.end - stored.start)
        file.seek(stored.start)
        if file.readinto(content) != len(content):
            raise ModelError(f"{file.name} is truncated: it ends within {name}", hint="copy the model again")
        return torch.frombuffer(content, dtype=dtype).reshape(stored.shape)

    def weights(self) -> int:
        """The number of parameters in all files."""
        return sum(stored.numel for _, stored in self._stored.values())


class Writer:
    """Writes one safetensors file. Names, dtypes and shapes are given first; then the tensors are written in that order."""

    def __init__(self, path: Path, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in tensors.items():
            size = dtype.itemsize * torch.Size(shape).numel()
            header[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # align the tensor data to 8 bytes
        self._expected = dict(tensors)
        self.bytes = offset
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor. Its name, dtype and shape must be as announced."""
        following = next(iter(self._expected))
        dtype, shape = self._expected.pop(following)
        assert (name, tensor.dtype, tuple(tensor.shape)) == (following, dtype, tuple(shape)), name
        if tensor.numel():
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            self._file.write(memoryview(flat.view(torch.uint8).numpy()))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._expected, f"not written: {list(self._expected)}"


def write_index(folder: Path, layout: dict[str, list[str]], total: int) -> None:
    """Write the index file of a sharded model; a single file needs none. total: bytes of all tensors."""
    if len(layout) > 1:
        weight_map = {name: file for file, names in layout.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")
