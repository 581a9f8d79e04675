"""The token store: examples as token ids and supervised spans, in memory-mapped Arrow shards.

ROOT/FINGERPRINT/train-00000.arrow       columns input_ids list<int32>, spans list<int32>
ROOT/FINGERPRINT/evaluation-00003.arrow  (flattened half-open pairs), source int16, file int32,
                                         dataset int32, row int64, position int16, is_positive bool,
                                         missing uint8, score float32
ROOT/FINGERPRINT/manifest.json           written last: readers ignore a folder without it

An example is one sequence of token ids, made from a record (see `encode.records`). Examples that belong together, such as
the chosen and the rejected answer of a pair, form a group: they are consecutive, and `position` counts them from 0. A single
example is a group of one, with position 0.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.data.arrow import bits_to_arrow, to_arrow
from tailor.data.blocks import Blocks
from tailor.data.shards import Shard
from tailor.data.split import Split
from tailor.errors import StoreError
from tailor.store import OBJECT, JsonFile, Store
from tailor.store.failures import writing
from tailor.store.file_cache import FileCache
from tailor.store.json_files import Count

MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),
        ("source", pa.int16()),
        ("file", pa.int32()),
        ("dataset", pa.int32()),
        ("row", pa.int64()),
        ("position", pa.int16()),
        ("is_positive", pa.bool_()),
        ("missing", pa.uint8()),
        ("score", pa.float32()),
    ]
)


class _Template(TypedDict):
    name: str
    text: str
    tool_use: NotRequired[str | None]
    end_of_turn_ids: list[Count]


class _Shard(TypedDict):
    name: str
    split: Literal["train", "evaluation"]
    first_row: int
    examples: NotRequired[Count]
    bytes: NotRequired[Count]
    checksum: NotRequired[str]
    files: list[str]
    datasets: list[str]


class _Manifest(TypedDict):
    fingerprint: str
    train_fingerprint: NotRequired[str]
    tokenizer: NotRequired[str]
    template: _Template | None
    shards: list[_Shard]
    report: NotRequired[dict[str, Any]]


MANIFEST_FILE = JsonFile(
    _Manifest, "remove {folder} and run the same command again: it prepares the tokens again"
)
SPLITS = ("train", "evaluation")


class TokenStore:
    """Prepared tokens at `url`. Use `TokenStore.open`."""

    def __init__(self, url: str, manifest: dict[str, Any]) -> None:
        self.url = url
        self.manifest = manifest
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, url: str) -> TokenStore:
        """Open a token store. StoreError when `url` has no manifest."""
        store = Store(url)
        if not store.exists(MANIFEST):
            raise StoreError(
                f"{store.url} contains no prepared tokens", hint="prepare them with `tailor data report`"
            )
        return cls(store.url, MANIFEST_FILE.read(store, MANIFEST))

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def train_fingerprint(self) -> str:
        """The fingerprint of the training sources only."""
        return str(self.manifest.get("train_fingerprint", self.fingerprint))

    @property
    def template(self) -> dict[str, Any] | None:
        """The chat template of the examples: name, text, tool_use, end_of_turn_ids. None without conversations."""
        template: dict[str, Any] | None = self.manifest["template"]
        return template

    def split(self, name: Literal["train", "evaluation"]) -> Split:
        """A split, memory-mapped. A shard of a remote store is copied to the cache of this machine when it is needed."""
        if name not in self._splits:
            store = Store(self.url)
            cache = FileCache(store)
            shards = [
                Shard(
                    partial(store.local_path, one["name"])
                    if store.is_local or "checksum" not in one
                    else partial(cache.path, one["name"], one["bytes"], one["checksum"]),
                    one["first_row"],
                    one["files"],
                    one["datasets"],
                    one.get("examples"),
                )
                for one in self.manifest["shards"]
                if one["split"] == name
            ]
            self._splits[name] = Split(shards, partial(self._read_blocks, store, name))
        return self._splits[name]

    def _read_blocks(self, store: Store, split: str, row_length: int) -> Blocks | None:
        """None in stores of earlier versions, and for rows of another length."""
        name = blocks_file(split)
        if not store.exists(name) or (found := Blocks.read(store, name, row_length)) is None:
            return None
        counts = [one["examples"] for one in self.manifest["shards"] if one["split"] == split]
        if np.bincount(found.shard, weights=found.examples, minlength=len(counts)).tolist() != counts:
            raise Blocks.damaged(store, name, "has other numbers of examples than the shards")
        return found


def blocks_file(split: str) -> str:
    """The name of the file with the table of blocks of a split."""
    return f"{split}-blocks.arrow"


def is_readable(url: str) -> bool:
    """Whether there are prepared tokens at `url`, in the form of this version: earlier ones did not name files and datasets."""
    store = Store(url)
    return store.exists(MANIFEST) and all(
        "datasets" in shard for shard in OBJECT.read(store, MANIFEST).get("shards", ())
    )


class ShardWriter:
    """Writes one shard to a local file, batch by batch. StoreError when the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(str(path.parent)):
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self.examples = 0

    def write(
        self,
        input_ids: pa.ListArray,
        spans: pa.ListArray,
        source: int,
        rows: np.ndarray,
        *,
        files: np.ndarray | None = None,
        datasets: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        is_positive: np.ndarray | None = None,
        missing: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> None:
        """Write n examples. input_ids, spans: list<int32> [n]; rows: int64 [n], counted from 1 in the task's file range.

        files, datasets: int [n], default all 0: indices in the shard's lists of files and datasets; without a list of
        datasets, `datasets` counts files. positions: int [n], default all 0: every
        example is its own group. is_positive: bool [n], default all True. missing: int [n], default all 0. scores: float [n],
        default all NaN.
        """
        count = len(rows)
        columns = [
            input_ids,
            spans,
            to_arrow(np.full(count, source), np.int16),
            to_arrow(np.zeros(count) if files is None else files, np.int32),
            to_arrow(np.zeros(count) if datasets is None else datasets, np.int32),
            to_arrow(rows, np.int64),
            to_arrow(np.zeros(count) if positions is None else positions, np.int16),
            bits_to_arrow(np.ones(count, np.bool_) if is_positive is None else is_positive),
            to_arrow(np.zeros(count) if missing is None else missing, np.uint8),
            to_arrow(np.full(count, np.nan) if scores is None else scores, np.float32),
        ]
        with writing(str(self.path.parent)):
            self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self.examples += count

    def close(self) -> None:
        with writing(str(self.path.parent)):
            self._writer.close()
            self._sink.close()


def ragged(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """list<int32> from flat values and the length of each list."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(to_arrow(offsets, np.int32), to_arrow(values, np.int32))
