"""Which training rows repeat earlier ones: a pass over the sources before their rows are encoded (`data.deduplicate`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from tailor.encode.counted_rows import NAMED
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.records import RowError, row_hash
from tailor.encode.similarity.signature_file import Blocks, SignatureFile, first_equal
from tailor.encode.similarity.signatures import Signer
from tailor.encode.similarity.texts import HashedTexts, texts_of
from tailor.encode.tasks import Removed, Runner, Task, first_rows, read_rows

EXACT, NEAR = "duplicate", "near_duplicate"


@dataclass
class Scanned:
    """What one task read. Arrays have one value per row with a record.

    indices: int64, the row's index in the task, from 0; numbers: int64, its number in its file range; files: int32, the
    index of its file in `labels`; hashes: uint64. signatures: blocks of uint32 [n, WIDTH], none if they are not needed.
    """

    number: int
    rows: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    files: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    signatures: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Scan:
    """Hashes the rows of a task. Called like `encode.tasks.Work`. near: whether to compute signatures too."""

    near: bool
    scorer: None = None

    def __call__(self, task: Task) -> Scanned:
        found = Scanned(task.number)
        fmt, signer = get_format(task.format), Signer() if self.near else None
        indices, numbers, files, hashes, signatures = [], [], [], [], Blocks()
        for index, (label, number, row) in enumerate(read_rows(task, found.lines)):
            found.rows += 1
            try:
                record, _ = guarded(fmt, row, task.columns)
            except RowError:
                continue
            if label not in found.labels[-1:]:
                found.labels.append(label)
            indices.append(index)
            numbers.append(number)
            files.append(len(found.labels) - 1)
            hashes.append(row_hash(record))
            if signer is not None:
                signatures.append(signer(record, HashedTexts.of(texts_of(record))))
        found.indices, found.numbers = np.array(indices, np.int64), np.array(numbers, np.int64)
        found.files, found.hashes = np.array(files, np.int32), np.array(hashes, np.uint64)
        found.signatures = signatures.close()
        return found


def without_duplicates(runner: Runner, tasks: Sequence[Task], *, near: bool) -> list[Task]:
    """The tasks, of which those of training sources know the rows that repeat an earlier one.

    near: whether nearly equal rows count. The first row of a group is kept, in the order of the recipe.
    """
    training = [task for task in tasks if task.split == "train"]
    scanned: dict[int, Scanned] = {}
    with ExitStack() as stack:
        signatures = stack.enter_context(SignatureFile()) if near else None
        for found in runner(Scan(near), training):
            if signatures is not None:
                signatures.add(found.number, found.signatures)
                found.signatures = []
            scanned[found.number] = found
        ordered = [scanned[task.number] for task in training]
        equal = first_equal(np.concatenate([found.hashes for found in ordered]))
        first = signatures.first_similar(equal) if signatures is not None else equal
    offsets = first_rows(training, [found.lines for found in ordered])
    starts = np.cumsum([0, *(len(found.hashes) for found in ordered)])
    removed: dict[int, Removed] = {}
    for found, start, stop in zip(ordered, starts, starts[1:], strict=False):
        repeats = start + np.flatnonzero(first[start:stop] != np.arange(start, stop))
        is_near = equal[repeats] == repeats
        details: dict[int, str] = {}
        for group in (repeats[is_near], repeats[~is_near]):
            for row in group[:NAMED]:
                details[int(found.indices[row - start])] = _repeats(int(first[row]), starts, ordered, offsets)
        removed[found.number] = Removed(found.indices[repeats - start], is_near, details)
    return [replace(task, removed=removed.get(task.number)) for task in tasks]


def _repeats(row: int, starts: np.ndarray, scanned: Sequence[Scanned], offsets: Sequence[int]) -> str:
    """`repeats file:row` for a row of all tasks."""
    task = int(np.searchsorted(starts, row, "right")) - 1
    found, at = scanned[task], row - int(starts[task])
    return f"repeats {found.labels[found.files[at]]}:{found.numbers[at] + offsets[task]}"
