"""Safetensors files read and written tensor by tensor, so that no more than one tensor is in memory."""

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
    """The tensors of some safetensors files, by name. Use it as a context."""

    def __init__(self, files: list[Path]) -> None:
        self._stack = ExitStack()
        self.layout: dict[str, list[str]] = {}
        """File name -> the tensors in it, in their order."""
        self._stored: dict[str, tuple[Any, Stored]] = {}
        with ExitStack() as opening:
            for path in files:
                file = opening.enter_context(path.open("rb"))
                tensors, _ = read_header(file, str(path))
                self.layout[path.name] = list(tensors)
                for name, stored in tensors.items():
                    if stored.dtype not in DTYPES:
                        raise ModelError(
                            f"{path} stores {name} as {stored.dtype}, which is no precision to merge or average in",
                            hint="start from the model in 16 or 32 bits",
                        )
                    self._stored[name] = (file, stored)
            self._stack = opening.pop_all()

    @classmethod
    def of_model(cls, folder: Path) -> Reader:
        """ModelError when a file is missing or damaged."""
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
        return self._stored[name][1]

    def read(self, name: str) -> torch.Tensor:
        """A copy of its own: nothing stays mapped."""
        file, stored = self._stored[name]
        dtype = DTYPES[stored.dtype]
        if stored.numel == 0:
            return torch.empty(stored.shape, dtype=dtype)
        content = bytearray(stored.end - stored.start)
        file.seek(stored.start)
        if file.readinto(content) != len(content):
            raise ModelError(f"{file.name} ends before {name}", hint="copy the model again")
        return torch.frombuffer(content, dtype=dtype).reshape(stored.shape)

    def weights(self) -> int:
        """How many numbers there are."""
        return sum(stored.numel for _, stored in self._stored.values())


class Writer:
    """Writes one safetensors file. What is in it is told first; the tensors follow in that order."""

    def __init__(self, path: Path, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, (dtype, shape) in tensors.items():
            size = dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        self._expected = dict(tensors)
        self.bytes = at
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor."""
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
    """The index of a model of several files; a single file needs none."""
    if len(layout) > 1:
        weight_map = {name: file for file, names in layout.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")
