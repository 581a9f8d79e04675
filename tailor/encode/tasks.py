"""A task of preparation: read a part of a source, encode its rows, and write its own shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tailor.data.token_store import ShardWriter, ragged
from tailor.encode.examples import Encoder, Outcome
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.masks import EncodedExample
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import Record, RowError, content_hash
from tailor.encode.report import TaskReport
from tailor.encode.truncation import targets
from tailor.encode.unused import Watch
from tailor.store import Store
from tailor.store.scratch import scratch

_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 21


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

    @property
    def size(self) -> int:
        """Number of bytes to read."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Work:
    """The settings that all tasks share; sent once to every worker process. Calling it with a task runs the task.

    holdout: fraction of the training rows to move to the evaluation split. staging: URL of the folder for the shards.
    hashed: whether the rows' content is compared between training and evaluation.
    """

    encoder: Encoder
    holdout: float | None
    staging: str
    hashed: bool = False

    def __call__(self, task: Task) -> TaskReport:
        report = TaskReport(task.number)
        staging = Store(self.staging)
        hashes: dict[str, list[int]] = {}
        with scratch() as temporary:
            shards = _Shards(task, staging.local_path() if staging.is_local else temporary, report)
            for batch in _batches(task, report):
                outcomes = self.encoder([record for _, _, record in batch])
                for (label, row, record), outcome in zip(batch, outcomes, strict=True):
                    if isinstance(outcome, RowError):
                        report.leave_out(outcome.reason, label, row, outcome.detail)
                    else:
                        _count(report, outcome)
                        split = split_of(task.split, self.holdout, record)
                        report.held_out += split != task.split
                        shards.add(split, row, outcome.examples)
                        if self.hashed:
                            hashes.setdefault(split, []).append(content_hash(record))
                            if split == "evaluation":
                                report.hashed_rows.append((label, row))
                shards.flush()
            for path in shards.close():
                if not staging.is_local:
                    staging.put_file(path, path.name)
        report.hashes = {split: np.array(found, np.uint64) for split, found in hashes.items()}
        return report


Runner = Callable[[Work, Sequence[Task]], Iterator[TaskReport]]


def in_process(work: Work, tasks: Sequence[Task]) -> Iterator[TaskReport]:
    """Run the tasks one after the other in this process. The tokenizer uses all cores, a passage scorer uses one."""
    return map(work, tasks)


def split_of(split: str, holdout: float | None, record: Record) -> str:
    """The split of a record of a source of `split`. A hash of the content selects the holdout, so duplicates stay together."""
    if split != "train" or holdout is None:
        return split
    return "evaluation" if content_hash(record) < holdout * 2**64 else "train"


class _Shards:
    """Writes the shards of one task to a local folder, one per split that has examples."""

    def __init__(self, task: Task, folder: Path, report: TaskReport) -> None:
        self._task, self._folder, self._report = task, folder, report
        self._waiting: dict[str, list[tuple[int, EncodedExample]]] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._lengths: dict[str, list[np.ndarray]] = {}

    def add(self, split: str, row: int, examples: Iterable[EncodedExample]) -> None:
        self._waiting.setdefault(split, []).extend((row, example) for example in examples)

    def flush(self) -> None:
        for split, waiting in self._waiting.items():
            if not waiting:
                continue
            ids = [example.input_ids for _, example in waiting]
            lengths = np.array([len(one) for one in ids], np.int32)
            spans = [example.spans for _, example in waiting]
            edges = np.array([edge for group in spans for span in group for edge in span], np.int32)
            self._writer(split).write(
                ragged(np.concatenate(ids), lengths),
                ragged(edges, np.array([2 * len(group) for group in spans], np.int32)),
                self._task.source,
                np.array([row for row, _ in waiting], np.int64),
                positions=np.array([example.position for _, example in waiting]),
                is_positive=np.array([example.is_positive for _, example in waiting]),
            )
            self._lengths.setdefault(split, []).append(lengths)
            self._report.supervised[split] += sum(targets(group) for group in spans)
            waiting.clear()

    def _writer(self, split: str) -> ShardWriter:
        if split not in self._writers:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writers[split] = ShardWriter(self._folder / f"{split}-{self._task.number:05d}.arrow")
        return self._writers[split]

    def close(self) -> list[Path]:
        """Close the shards, add them to the report and return their paths."""
        for split, writer in self._writers.items():
            writer.close()
            self._report.shards.append((split, writer.path.name, writer.examples))
            self._report.lengths[split] = np.concatenate(self._lengths[split])
        return [writer.path for writer in self._writers.values()]


def _batches(task: Task, report: TaskReport) -> Iterator[list[tuple[str, int, Record]]]:
    """The records of a task as (file label, row number, record), in batches of bounded size."""
    fmt = get_format(task.format)
    watch = Watch(fmt, task.columns)
    report.unused, report.changes = watch.unused, watch.changes
    batch: list[tuple[str, int, Record]] = []
    characters = 0
    for label, number, row in _rows(task, report):
        report.rows += 1
        try:
            record, size = guarded(fmt, row, task.columns)
        except RowError as error:
            report.leave_out(error.reason, label, number, error.detail)
            continue
        watch.add(label, number, row, record)
        batch.append((label, number, record))
        characters += size
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _rows(task: Task, report: TaskReport) -> Iterator[tuple[str, int, Any]]:
    remaining = task.limit
    for part in task.parts:
        reader = Reader(part)
        for number, row in reader:
            if remaining == 0:
                return
            remaining = None if remaining is None else remaining - 1
            yield part.label, number + part.first_row, row
        report.lines[part.label] = reader.lines


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
