"""A task of preparation: read a part of a source, encode its rows, and write its own shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tailor.data.blocks import measure
from tailor.data.token_store import ShardWriter, ragged
from tailor.encode.counted_rows import CountedRows
from tailor.encode.examples import Encoder, Outcome
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.length_counts import NO_LENGTHS, LengthCounts
from tailor.encode.masks import EncodedExample
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import Record, Relevance, RowError, content_hash
from tailor.encode.report import NO_HASHES, TaskReport, WrittenShard
from tailor.encode.similarity.overlap import Reference
from tailor.encode.similarity.texts import HashedTexts, texts_of
from tailor.encode.sources import Resolved
from tailor.encode.truncation import Scorer, targets
from tailor.encode.unused import FILLED_NEGATIVES, UNUSED_SCORES, Watch
from tailor.store import Store
from tailor.store.file_cache import checksum_of
from tailor.store.scratch import scratch


class RecordOfRow(NamedTuple):
    """A record and where it comes from. label: of its file. dataset: value of the source's `dataset_column`, or None."""

    label: str
    row: int
    record: Record
    dataset: str | None


Batch = list[RecordOfRow]

SHARD_TOKENS = 1 << 24
"""Tokens of a shard, 64 MiB: a machine keeps the shards of hundreds of windows, and training waits for those of the first."""
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class Removed:
    """Rows of a task that repeat other rows. indices: int64 [n], their indices in the task, ascending.

    near: bool [n], whether a row is nearly equal, not equal. details: index -> which row it repeats, for the first ones.
    """

    indices: np.ndarray
    near: np.ndarray
    details: dict[int, str]


@dataclass(frozen=True)
class Task:
    """A part of the work. number: its index among all tasks. split, source: the split, and the index in its source list."""

    number: int
    split: str
    source: int
    parts: tuple[FileRange, ...]
    format: str
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    dataset_column: str | None = None
    removed: Removed | None = None
    instructions: tuple[str | None, str | None] = (None, None)
    """Of queries and of passages that have none in their row."""

    @property
    def size(self) -> int:
        """Number of bytes to read."""
        return sum(part.size for part in self.parts)


def task_of(
    resolved: Resolved,
    split: str,
    index: int,
    parts: tuple[FileRange, ...] | None = None,
    *,
    number: int = 0,
) -> Task:
    """The task that reads these parts of a source; None for all of its files. index: in the source list of the split."""
    source = resolved.source
    return Task(
        number,
        split,
        index,
        resolved.files if parts is None else parts,
        resolved.format,
        source.columns,
        source.limit,
        source.dataset_column,
        instructions=(source.query_instruction, source.passage_instruction),
    )


@dataclass(frozen=True)
class Work:
    """The settings that all tasks share; sent once to every worker process. Calling it with a task runs the task.

    holdout: fraction of the training rows to move to the evaluation split. staging: URL of the folder for the shards.
    row_length: tokens of a packed or joined row, `data.max_length`.
    evaluated: uint64[n], hashes of the rows of evaluation sources, among which training rows are looked up. benchmarks: training
    rows that contain one of these texts are left out.
    """

    encoder: Encoder
    holdout: float | None
    staging: str
    row_length: int
    evaluated: np.ndarray = field(default_factory=lambda: NO_HASHES)
    benchmarks: Reference | None = None

    @property
    def scorer(self) -> Scorer | None:
        """The model that scores passages."""
        return self.encoder.scorer

    def __call__(self, task: Task) -> TaskReport:
        report = TaskReport(task.number)
        staging = Store(self.staging)
        hashes: list[int] = []
        with scratch() as temporary:
            shards = _Shards(
                task, staging.local_path() if staging.is_local else temporary, report, self.row_length
            )
            for batch in batches(task, report):
                if self.benchmarks is not None and task.split == "train":
                    batch = self._without_matches(batch, self.benchmarks, report)
                outcomes = self.encoder([one.record for one in batch])
                for (label, row, record, dataset), outcome in zip(batch, outcomes, strict=True):
                    if isinstance(outcome, RowError):
                        report.leave_out(outcome.reason, label, row, outcome.detail)
                    else:
                        _count(report, outcome)
                        if isinstance(record, Relevance):
                            _count_changes(report, self.encoder, label, row, record)
                        split = split_of(task.split, self.holdout, record)
                        report.held_out += split != task.split
                        shards.add(split, label, dataset, row, outcome.examples)
                        if task.split == "evaluation":
                            hashes.append(content_hash(record))
                            report.hashed_rows.append((label, row))
                        elif split == "train" and len(self.evaluated):
                            hashes.append(content_hash(record))
                shards.flush()
            for path in shards.close():
                if not staging.is_local:
                    staging.put_file(path, path.name)
        report.hashes = np.array(hashes, np.uint64)
        if task.split == "train":
            report.hashes = np.intersect1d(report.hashes, self.evaluated)
        return report

    def _without_matches(self, batch: Batch, benchmarks: Reference, report: TaskReport) -> Batch:
        """The rows that contain no text of a benchmark, and those that the holdout moves to the evaluation split."""
        kept: Batch = []
        for one in batch:
            match = benchmarks.match(HashedTexts.of(texts_of(one.record)))
            if match is None or split_of("train", self.holdout, one.record) != "train":
                kept.append(one)
            else:
                detail = f"contains {match.share:.0%} of {match.name}"
                report.leave_out("contaminated", one.label, one.row, detail)
        return kept


class TaskFunction(Protocol):
    """What a runner calls with each task; sent once to every worker process. scorer: a model that it keeps loaded."""

    @property
    def scorer(self) -> Scorer | None: ...

    def __call__(self, task: Task) -> Any: ...


Runner = Callable[[TaskFunction, Sequence[Task]], Iterator[Any]]
"""Calls a function with each task and returns its results, in any order."""


def in_process(work: TaskFunction, tasks: Sequence[Task]) -> Iterator[Any]:
    """Run the tasks one after the other in this process. The tokenizer uses all cores, a passage scorer uses one."""
    return map(work, tasks)


def split_of(split: str, holdout: float | None, record: Record) -> str:
    """The split of a record of a source of `split`. A hash of the content selects the holdout, so duplicates stay together."""
    if split != "train" or holdout is None:
        return split
    return "evaluation" if content_hash(record) < holdout * 2**64 else "train"


class _Shards:
    """Writes the shards of one task to a local folder: for each split that has examples one, or several of `SHARD_TOKENS`."""

    def __init__(self, task: Task, folder: Path, report: TaskReport, row_length: int) -> None:
        self._task, self._folder, self._report, self._row_length = task, folder, report, row_length
        self._waiting: dict[str, list[tuple[int, int, int, EncodedExample]]] = {}
        self._files: dict[str, dict[str, int]] = {}
        self._datasets: dict[str, dict[str, int]] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._measured: dict[str, list[np.ndarray]] = {}
        """split -> int64[3, n] lengths, supervised targets and positions, as in `Split`."""
        self.paths: list[Path] = []

    def add(
        self, split: str, label: str, dataset: str | None, row: int, examples: Iterable[EncodedExample]
    ) -> None:
        files, datasets = self._files.setdefault(split, {}), self._datasets.setdefault(split, {})
        file = files.setdefault(label, len(files))
        of = file if dataset is None else datasets.setdefault(dataset, len(datasets))
        self._waiting.setdefault(split, []).extend((file, of, row, example) for example in examples)

    def flush(self) -> None:
        for split, waiting in self._waiting.items():
            if not waiting:
                continue
            files, datasets, rows, examples = zip(*waiting, strict=True)
            ids = [example.input_ids for example in examples]
            lengths = np.array([len(one) for one in ids], np.int32)
            spans = [example.spans for example in examples]
            positions = np.array([example.position for example in examples])
            edges = np.array([edge for group in spans for span in group for edge in span], np.int32)
            self._writer(split).write(
                ragged(np.concatenate(ids), lengths),
                ragged(edges, np.array([2 * len(group) for group in spans], np.int32)),
                self._task.source,
                np.array(rows, np.int64),
                files=np.array(files, np.int32),
                datasets=np.array(datasets, np.int32),
                positions=positions,
                is_positive=np.array([example.is_positive for example in examples]),
                missing=np.array([example.missing for example in examples], np.uint8),
                scores=np.array([example.score for example in examples], np.float32),
            )
            measured = np.array([lengths, [targets(group) for group in spans], positions], np.int64)
            self._measured.setdefault(split, []).append(measured)
            waiting.clear()
            if sum(int(part[0].sum()) for part in self._measured[split]) >= SHARD_TOKENS:
                self._finish(split)

    def _writer(self, split: str) -> ShardWriter:
        if split not in self._writers:
            self._folder.mkdir(parents=True, exist_ok=True)
            written = sum(shard.split == split for shard in self._report.shards)
            number = f"{self._task.number:05d}" + (f"-{written}" if written else "")
            self._writers[split] = ShardWriter(self._folder / f"{split}-{number}.arrow")
        return self._writers[split]

    def _finish(self, split: str) -> None:
        """Close a shard and add it to the report."""
        writer = self._writers.pop(split)
        writer.close()
        self.paths.append(writer.path)
        files, datasets = list(self._files.pop(split)), list(self._datasets.pop(split))
        size, checksum = writer.path.stat().st_size, checksum_of(writer.path)
        self._report.shards.append(
            WrittenShard(split, writer.path.name, writer.examples, size, checksum, files, datasets)
        )
        lengths, supervised, positions = np.concatenate(self._measured.pop(split), axis=1)
        before = self._report.lengths.get(split, NO_LENGTHS)
        self._report.lengths[split] = LengthCounts.sum((before, LengthCounts.of(lengths)))
        self._report.supervised[split] += int(supervised.sum())
        sources = np.full(len(lengths), self._task.source)
        blocks = measure(lengths, supervised, sources, positions, self._row_length)
        self._report.blocks.setdefault(split, []).append(blocks)

    def close(self) -> list[Path]:
        """Close the shards and return the paths of all."""
        for split in list(self._writers):
            self._finish(split)
        return self.paths


def batches(task: Task, report: TaskReport | None = None) -> Iterator[Batch]:
    """The records of a task in batches of bounded size, without those that repeat other rows. report: counts the others."""
    report = report or TaskReport(task.number)
    fmt = get_format(task.format)
    watch = Watch(fmt, task.columns, task.dataset_column)
    report.unused, report.changes = watch.unused, watch.changes
    report.named, report.seen = watch.named, watch.seen
    removed = task.removed
    repeats = dict(zip(removed.indices.tolist(), removed.near.tolist(), strict=True)) if removed else {}
    batch: Batch = []
    characters = 0
    for index, (label, number, row) in enumerate(read_rows(task, report.lines)):
        report.rows += 1
        try:
            record, size = guarded(fmt, row, task.columns)
            dataset = None if task.dataset_column is None else _dataset(row, task.dataset_column)
        except RowError as error:
            report.leave_out(error.reason, label, number, error.detail)
            continue
        if removed is not None and index in repeats:
            reason = "near_duplicate" if repeats[index] else "duplicate"
            report.leave_out(reason, label, number, removed.details.get(index, ""))
            continue
        watch.add(label, number, row, record)
        if isinstance(record, Relevance):
            record = record.instructed(*task.instructions)
        batch.append(RecordOfRow(label, number, record, dataset))
        characters += size
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _dataset(row: Mapping[str, Any], column: str) -> str:
    """The name of the row's dataset. RowError without one."""
    value = row.get(column)
    if not isinstance(value, str | int) or value == "":
        raise RowError("missing_key", f"`{column}` (dataset_column) has no name of a dataset")
    return str(value)


def read_rows(task: Task, lines: dict[str, int]) -> Iterator[tuple[str, int, Any]]:
    """The rows of a task as (file label, row number in the file range, row or RowError).

    lines: gets the number of rows of each file range that was read to its end.
    """
    remaining = task.limit
    for part in task.parts:
        reader = Reader(part)
        for number, row in reader:
            if remaining == 0:
                return
            remaining = None if remaining is None else remaining - 1
            yield part.label, number + part.first_row, row
        lines[part.label] = reader.lines


def first_rows(tasks: Sequence[Task], lines: Sequence[Mapping[str, int]]) -> list[int]:
    """Per task, the number of rows in its file before its range, from the `lines` of all tasks of the sources."""
    before: dict[tuple[str, int, str], int] = {}
    firsts = []
    for task, own in zip(tasks, lines, strict=True):
        part = task.parts[0]
        is_later = part.start and not part.first_row
        firsts.append(before.get((task.split, task.source, part.label), 0) if is_later else 0)
        for label, count in own.items():
            key = (task.split, task.source, label)
            before[key] = before.get(key, 0) + count
    return firsts


def _count_changes(report: TaskReport, encoder: Encoder, label: str, row: int, record: Relevance) -> None:
    if encoder.fills_negatives and not record.negatives:
        report.changes.setdefault(FILLED_NEGATIVES, CountedRows()).add(label, row, "")
    if record.scores is not None and not encoder.distills:
        report.changes.setdefault(UNUSED_SCORES, CountedRows()).add(label, row, "")


def _count(report: TaskReport, outcome: Outcome) -> None:
    report.kept += 1
    report.truncated += outcome.truncated
    report.supervised_cut += outcome.supervised_cut
    report.prompt_cut += outcome.prompt_cut
    report.retrieved += outcome.retrieved
    report.passed_over += outcome.passed_over
    report.partly_read += outcome.partly_read
    report.chunked += outcome.chunked
    if outcome.chunked:
        report.pieces += len(outcome.examples)
        report.unsupervised_pieces += outcome.unsupervised
    elif len(outcome.examples) > 1 and not outcome.examples[1].position:
        report.split += 1
