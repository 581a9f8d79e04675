"""Files of key-values beside a file of embeddings: one safetensors file per batch of rows, and an index."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.errors import StoreError
from tailor.models.embedding.key_values import KeyValues
from tailor.store import JsonFile, Store
from tailor.store.json_files import Positive

SUFFIX = ".safetensors"
INDEX = "index.json"
_PART = re.compile(r"part-\d{6}\.safetensors")


class About(TypedDict):
    """The contents of `index.json`."""

    identity: str
    """Of the input, the request and the model; also in the file of embeddings."""
    rows: Positive
    """Rows of each file; the last one may have fewer."""


INDEX_FILE = JsonFile(About, "embed the corpus again with --key-values")


def folder_of(name: str) -> str:
    """The folder of key-values beside a file of embeddings."""
    return f"{name}.key-values"


def is_own(name: str) -> bool:
    return name == INDEX or _PART.fullmatch(name) is not None


def read_index(folder: Store) -> About:
    """The contents of `index.json`. StoreError if it is damaged."""
    values = INDEX_FILE.read(folder, INDEX)
    return About(identity=values["identity"], rows=values["rows"])


def write(folder: Store, file: str, first: int, found: Sequence[KeyValues]) -> None:
    """Write the key-values of consecutive rows, atomically. first: number of the first row, from 1."""
    tensors: dict[str, torch.Tensor] = {}
    for row, one in enumerate(found, first):
        tensors |= {f"{row}.ids": one.ids, f"{row}.keys": one.keys, f"{row}.values": one.values}
    with folder.open(file, "wb") as stream:
        stream.write(save(tensors))


def read(folder: Store, about: About, row: int) -> KeyValues:
    """The key-values of a row, from 1. StoreError if they are missing or damaged."""
    file = f"part-{(row - 1) // about['rows']:06d}{SUFFIX}"
    names = [f"{row}.{part}" for part in ("ids", "keys", "values")]
    try:
        if folder.is_local:  # only the tensors of the row are read
            with safe_open(folder.local_path() / file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in names}
        else:
            tensors = load(folder.read_bytes(file))
        ids, keys, values = (tensors[name] for name in names)
        if ids.ndim != 1 or ids.dtype != torch.int64 or not len(ids) == keys.shape[2] == values.shape[2]:
            raise ValueError("its tensors have different lengths")
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise StoreError(
            f"{folder.url_of(file)} is missing or damaged: {error}",
            hint="embed the corpus again with --key-values",
        ) from None
    return KeyValues(ids, keys, values)
