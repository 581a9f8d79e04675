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

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.data.distinct import text_hashes
from tailor.errors import StoreError
from tailor.store import OBJECT, JsonFile, Store
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


class Missing(IntFlag):
    """The tokens of a row that its example lacks, because the row was longer than `data.max_length`.

    START: of a later chunk too, although it repeats BOS and the system turn from the row's start.
    """

    START = 1
    END = 2
    MIDDLE = 4


class RowId(NamedTuple):
    """A data row: the index of its source in the recipe's list, the file's name, and the row number in it, from 1."""

    source: int
    file: str
    row: int

    def __str__(self) -> str:
        return f"source {self.source} {self.file}:{self.row}"


@dataclass(frozen=True)
class Shard:
    """A shard on this machine. first_row: rows of its file before it. files, datasets: names that its columns count."""

    path: Path
    first_row: int
    files: Sequence[str]
    datasets: Sequence[str]


@dataclass(frozen=True)
class Example:
    """One example. Both arrays are read-only views of the memory map.

    input_ids: int32 [T]; spans: int32 [k, 2], half-open ranges of supervised tokens.
    """

    input_ids: np.ndarray
    spans: np.ndarray


@dataclass(frozen=True)
class _Block:
    """One Arrow record batch: values and offsets of the two list columns, and the other columns."""

    ids: np.ndarray
    id_offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    source: np.ndarray
    file: np.ndarray
    dataset: np.ndarray
    row: np.ndarray
    position: np.ndarray
    is_positive: np.ndarray
    missing: np.ndarray
    score: np.ndarray


class Split:
    """The examples of one split, in the order of the sources, files and rows.

    lengths: int32 [n] tokens. supervised: int32 [n] supervised targets (the first token of an example
    is never a target, because nothing predicts it). source: int16 [n] index in the recipe's `data.train`
    list, or in `data.evaluation` for rows of an evaluation source. file: int32 [n] index in `files`.
    row: int64 [n] row number in the file, from 1. position: int16 [n] position in the example's group,
    from 0. is_positive: bool [n] False for a rejected or undesirable answer, and for a negative passage.
    missing: uint8 [n] `Missing` flags. files: names of the files, as in messages. dataset: int32 [n], equal for the rows of
    one dataset of a source: a file, or the rows with one value in the source's `dataset_column`. score: float32 [n] a
    teacher's score of a passage, NaN without one.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._blocks: list[_Block] = []
        numbers: dict[str, int] = {}
        datasets: dict[tuple[bool, str], int] = {}
        for shard in shards:
            files = np.array([numbers.setdefault(name, len(numbers)) for name in shard.files], np.int32)
            keys = [(True, name) for name in shard.datasets] or [(False, name) for name in shard.files]
            named = np.array([datasets.setdefault(key, len(datasets)) for key in keys], np.int32)
            with pa.memory_map(str(shard.path)) as mapped, pa.ipc.open_file(mapped) as reader:
                for index in range(reader.num_record_batches):
                    self._blocks.append(_block(reader.get_batch(index), shard.first_row, files, named))
        self.files = tuple(numbers)
        blocks = self._blocks
        self._starts = np.cumsum([0, *(len(block.row) for block in blocks)])
        self.lengths = _join([np.diff(block.id_offsets) for block in blocks], np.int32)
        self.supervised = _join([_supervised(block) for block in blocks], np.int32)
        self.source = _join([block.source for block in blocks], np.int16)
        self.file = _join([block.file for block in blocks], np.int32)
        self.dataset = _join([block.dataset for block in blocks], np.int32)
        self.row = _join([block.row for block in blocks], np.int64)
        self.position = _join([block.position for block in blocks], np.int16)
        self.is_positive = _join([block.is_positive for block in blocks], np.bool_)
        self.missing = _join([block.missing for block in blocks], np.uint8)
        self.score = _join([block.score for block in blocks], np.float32)

    def row_id(self, index: int) -> RowId:
        """The data row of example `index`. A row can have several examples; they are consecutive."""
        return RowId(int(self.source[index]), self.files[self.file[index]], int(self.row[index]))

    def rows(self) -> Iterator[tuple[RowId, list[int]]]:
        """(data row, indices of its examples) of each row, in order."""
        for row_id, indices in itertools.groupby(range(len(self)), key=self.row_id):
            yield row_id, list(indices)

    @property
    def row_count(self) -> int:
        """Number of data rows that have an example."""
        places = np.stack([self.source.astype(np.int64), self.file.astype(np.int64), self.row])  # [3, n]
        return int((places[:, 1:] != places[:, :-1]).any(0).sum()) + bool(len(self))

    def __len__(self) -> int:
        return len(self.row)

    def digest(self) -> str:
        """A hash of the examples in their order: their tokens, what is supervised, their groups and scores."""
        columns = ("ids", "spans", "position", "is_positive")
        parts = [hashlib.sha256() for _ in (*columns, "lengths")]
        for block in self._blocks:
            for part, name in zip(parts, columns, strict=False):
                part.update(np.ascontiguousarray(getattr(block, name)).tobytes())
            parts[-1].update(np.stack([np.diff(block.id_offsets), np.diff(block.span_offsets)], 1).tobytes())
        whole = hashlib.sha256(b"".join(part.digest() for part in parts))
        if not np.isnan(self.score).all():
            whole.update(self.score.tobytes())
        return whole.hexdigest()

    def example(self, index: int) -> Example:
        """Example `index`, counted from 0. IndexError when out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        block, at = self._blocks[number], index - int(self._starts[number])
        ids = block.ids[block.id_offsets[at] : block.id_offsets[at + 1]]
        spans = block.spans[block.span_offsets[at] : block.span_offsets[at + 1]]
        return Example(ids, spans.reshape(-1, 2))

    def text_hashes(self) -> np.ndarray:
        """uint64[n]: a hash of the tokens of each example's first span, which for a text to embed is the text itself."""
        hashes = [np.zeros(0, np.uint64)]
        for block in self._blocks:
            first, has_spans = block.span_offsets[:-1], np.diff(block.span_offsets) > 0
            start, stop = (
                np.where(has_spans, np.append(block.spans, [0, 0])[first + side], 0) for side in (0, 1)
            )
            before = block.id_offsets[:-1].astype(np.int64)
            hashes.append(text_hashes(block.ids, before + start, before + stop))
        return np.concatenate(hashes)


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
        """A split, memory-mapped. Shards of a remote store are first copied to this machine, once."""
        if name not in self._splits:
            store = Store(self.url)
            shards = [shard for shard in self.manifest["shards"] if shard["split"] == name]
            self._splits[name] = Split(
                [
                    Shard(store.local_path(one["name"]), one["first_row"], one["files"], one["datasets"])
                    for one in shards
                ]
            )
        return self._splits[name]


def is_readable(url: str) -> bool:
    """Whether there are prepared tokens at `url`, in the form of this version: earlier ones did not name files and datasets."""
    store = Store(url)
    return store.exists(MANIFEST) and all(
        "datasets" in shard for shard in OBJECT.read(store, MANIFEST).get("shards", ())
    )


class ShardWriter:
    """Writes one shard to a local file, batch by batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            pa.array(np.full(count, source, np.int16)),
            pa.array(np.zeros(count) if files is None else files).cast(pa.int32()),
            pa.array(np.zeros(count) if datasets is None else datasets).cast(pa.int32()),
            pa.array(rows, pa.int64()),
            pa.array(np.zeros(count) if positions is None else positions).cast(pa.int16()),
            pa.array(np.ones(count, np.bool_) if is_positive is None else is_positive),
            pa.array(np.zeros(count) if missing is None else missing).cast(pa.uint8()),
            pa.array(np.full(count, np.nan) if scores is None else scores).cast(pa.float32()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self.examples += count

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


def ragged(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """list<int32> from flat values and the length of each list."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32, copy=False)))


def supervised_targets(spans: np.ndarray) -> np.ndarray:
    """Number of targets in each span. spans: [k, 2] -> [k]. The token at position 0 is never a target."""
    targets: np.ndarray = np.maximum(spans[:, 1] - np.maximum(spans[:, 0], 1), 0)  # [k]
    return targets


def _block(batch: pa.RecordBatch, first_row: int, files: np.ndarray, datasets: np.ndarray) -> _Block:
    """files, datasets: int32[k], the number in the split of each of the shard's files and datasets."""
    ids, spans = batch.column("input_ids"), batch.column("spans")
    return _Block(
        ids=ids.values.to_numpy(),
        id_offsets=ids.offsets.to_numpy(),
        spans=spans.values.to_numpy(),
        span_offsets=spans.offsets.to_numpy(),
        source=batch.column("source").to_numpy(),
        file=files[batch.column("file").to_numpy()],
        dataset=datasets[batch.column("dataset").to_numpy()],
        row=batch.column("row").to_numpy() + first_row,
        position=batch.column("position").to_numpy(),
        is_positive=batch.column("is_positive").to_numpy(zero_copy_only=False),
        missing=batch.column("missing").to_numpy(),
        score=_scores(batch),
    )


def _scores(batch: pa.RecordBatch) -> np.ndarray:
    """float32[n]. Shards of earlier versions have none."""
    if "score" not in batch.schema.names:
        return np.full(batch.num_rows, np.nan, np.float32)
    scores: np.ndarray = batch.column("score").to_numpy()
    return scores


def _supervised(block: _Block) -> np.ndarray:
    pairs = block.spans.reshape(-1, 2)  # [k, 2]
    total = np.concatenate([[0], np.cumsum(supervised_targets(pairs))])  # [k + 1]
    return np.diff(total[block.span_offsets // 2])


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
