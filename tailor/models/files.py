"""The safetensors files of a model folder: their headers, and fingerprints that identify a model by its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.encode.gguf import SUFFIX, WEIGHTS, readable
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG, MODEL_INDEX, MODEL_WEIGHTS
from tailor.store import JsonFile

BLOCKS, BLOCK = 64, 1 << 16
"""The fingerprint samples this many blocks of this many bytes from each file, evenly spread (4 MiB in total)."""
PARTS = (SUFFIX, ".json", ".jinja", ".model", ".safetensors", ".txt")
"""Suffixes of the files that determine what a model computes."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: dtype as the file names it (`BF16`), shape, and byte offsets from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class _Index(TypedDict):
    weight_map: dict[str, str]


_INDEX_FILE = JsonFile(_Index, "copy the model again", version=None)


def find_folder(path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a model: `path` itself, or the snapshot of a Hugging Face Hub model, downloaded if needed.

    ModelError if `path` is neither.
    """
    folder = Path(readable(path))
    if (folder / MODEL_CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"{path} is not a model folder: it has no {MODEL_CONFIG}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*"]
    try:
        return Path(
            snapshot_download(path, revision=revision, allow_patterns=patterns + ["*.py"] * trust_remote_code)
        )
    except HFValidationError:
        problem = "is neither a local folder nor a valid id of a Hugging Face Hub model"
    except (HfHubHTTPError, OSError) as error:  # offline, not found, gated
        problem = f"is not a local folder and could not be downloaded from the Hugging Face Hub ({first_line(error)})"
    raise ModelError(
        f"the model {path} {problem}", hint=f"looked for {folder.absolute()} and huggingface.co/{path}"
    )


def cached_folder(path: str, revision: str | None = None) -> Path | None:
    """The local folder of a model that was loaded on this machine before; None if there is none. Downloads nothing."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            readable(path),
            MODEL_CONFIG,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError:  # a folder that is gone is no valid id either
        return None
    return Path(found).parent if found else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, sorted: safetensors, or one `.gguf` file. ModelError if there are none or one is
    missing."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / MODEL_INDEX).is_file():
        names = indexed_files(folder)
    else:
        names = [MODEL_WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no complete weights: {name} is missing",
                hint="weights must be safetensors files",
            )
    return [folder / name for name in names]


def indexed_files(folder: Path) -> list[str]:
    """The file names in the index of a sharded model. ModelError when it names files of other folders."""
    names = set(_INDEX_FILE.read_path(folder / MODEL_INDEX)["weight_map"].values())
    for name in sorted(names):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ModelError(
                f"{folder / MODEL_INDEX} names the file {name!r}, which is not in the folder of the model",
                hint="weights must be in the model's own folder",
            )
    return sorted(names)


def read_header(file: BinaryIO, name: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata in the header of an open safetensors file. name: for messages. ModelError if it is damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ValueError(f"its header claims a length of {length} bytes, the file has {size}")
        header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for key, value in header.items():
            start, end = (8 + length + offset for offset in value["data_offsets"])
            if end > size:
                raise ValueError(f"it ends before the end of {key}")
            tensors[key] = Stored(value["dtype"], tuple(value["shape"]), start, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} is damaged: {first_line(error)}", hint="copy the model again") from None
    return tensors, metadata


def fingerprint(folder: Path) -> str:
    """A hash of a model's weights that does not depend on the folder.

    It covers the header and 4 MiB of each file, evenly spread: hashing all of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        _sample(digest, path)
    return digest.hexdigest()


def contents(folder: Path) -> str:
    """A hash of all files that determine what a model or adapter computes: the weights as in `fingerprint`, the rest in full.

    It covers the names of the files and not that of the folder.
    """
    digest = hashlib.sha256()
    for name, path in _parts(folder):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        if path.suffix in (".safetensors", SUFFIX):
            _sample(digest, path)
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def numbers(folder: Path) -> Iterator[int]:
    """Number of tensor elements in each safetensors file of a model or adapter."""
    for name, path in _parts(folder):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                yield sum(tensor.numel for tensor in read_header(file, name)[0].values())


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the files that determine what a model computes, sorted by name."""
    named = ((path.relative_to(folder), path) for path in folder.rglob("*"))
    return sorted(
        (str(name.as_posix()), path)
        for name, path in named
        if path.suffix in PARTS and path.is_file() and not any(part.startswith(".") for part in name.parts)
    )


def _sample(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = BLOCK if path.suffix == SUFFIX else 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest.update(file.read(header))
        rest = max(0, size - header - BLOCK)
        offsets = sorted({header + rest * number // (BLOCKS - 1) for number in range(BLOCKS)})
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(BLOCK))


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
