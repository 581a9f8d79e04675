"""A model folder's safetensors files: what is in them, and a fingerprint that tells two models apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG, MODEL_INDEX, MODEL_WEIGHTS

BLOCKS, BLOCK = 64, 1 << 16
"""Of each file, so many blocks of so many bytes decide the fingerprint, spread evenly."""
PARTS = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of the files that decide what a model computes."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its dtype as the file names it, its shape, and its bytes' place."""

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


def find_folder(path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a model: `path` itself, or the hub's files, downloaded where they are not here yet.

    ModelError when there is none.
    """
    folder = Path(path)
    if (folder / MODEL_CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"{path} holds no model: it has no {MODEL_CONFIG}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    is_positive = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*"]
    try:
        return Path(
            snapshot_download(
                path, revision=revision, allow_patterns=is_positive + ["*.py"] * trust_remote_code
            )
        )
    except HFValidationError:
        problem = "is neither a local folder nor an id of a hub model"
    except (HfHubHTTPError, OSError) as error:  # offline, not found, gated
        problem = f"is no local folder, and the hub does not give it ({_first_line(error)})"
    raise ModelError(
        f"the model {path} {problem}", hint=f"looked for {folder.absolute()} and huggingface.co/{path}"
    )


def cached_folder(path: str, revision: str | None = None) -> Path | None:
    """The local folder of a model that was loaded on this machine."""
    from transformers.utils import cached_file

    found = cached_file(
        path,
        MODEL_CONFIG,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )
    return Path(found).parent if found else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted. ModelError when there are none, or one is missing."""
    if (folder / MODEL_INDEX).is_file():
        names = sorted(set(json.loads((folder / MODEL_INDEX).read_text())["weight_map"].values()))
    else:
        names = [MODEL_WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} holds no weights: {name} is missing", hint="weights must be safetensors"
            )
    return [folder / name for name in names]


def read_header(file: BinaryIO, name: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of an open safetensors file; places count from the file's start. ModelError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ValueError("its header has no possible length")
        header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for key, value in header.items():
            start, end = (8 + length + at for at in value["data_offsets"])
            if end > size:
                raise ValueError(f"it ends before {key}")
            tensors[key] = Stored(value["dtype"], tuple(value["shape"]), start, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} is damaged: {_first_line(error)}", hint="copy the model again") from None
    return tensors, metadata


def fingerprint(folder: Path) -> str:
    """Changes with the weights of a model, whatever folder they lie in.

    It reads the headers and 4 MiB of each file, spread evenly: all of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        _sample(digest, path)
    return digest.hexdigest()


def contents(folder: Path) -> str:
    """Changes with all that a model or adapter is: its weights as in `fingerprint`, and every small file beside them.

    Names count, the folder's own does not.
    """
    digest = hashlib.sha256()
    for name, path in _parts(folder):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        if path.suffix == ".safetensors":
            _sample(digest, path)
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def numbers(folder: Path) -> Iterator[int]:
    """How many numbers each safetensors file of a model or adapter holds."""
    for name, path in _parts(folder):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                yield sum(tensor.numel for tensor in read_header(file, name)[0].values())


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the files that decide what a model computes, sorted by name."""
    named = ((path.relative_to(folder), path) for path in folder.rglob("*"))
    return sorted(
        (str(name.as_posix()), path)
        for name, path in named
        if path.suffix in PARTS and path.is_file() and not any(part.startswith(".") for part in name.parts)
    )


def _sample(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest.update(file.read(header))
        rest = max(0, size - header - BLOCK)
        places = sorted({header + rest * number // (BLOCKS - 1) for number in range(BLOCKS)})
        for place in places:
            file.seek(place)
            digest.update(file.read(BLOCK))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
