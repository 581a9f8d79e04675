"""What is done of work that is cut into parts: one file per part, so that killed work resumes."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tailor.evaluate.batches import Embedded, EvaluationBatch, Result
from tailor.layout import STATE
from tailor.spec.suite import Decoding

if TYPE_CHECKING:
    from tailor.store import Store


class ResumableParts:
    """The finished parts in a folder, numbered from 0, and the identity of the work that they belong to."""

    suffixes: ClassVar[tuple[str, ...]]
    """Of the parts' files."""

    def __init__(self, folder: Store, identity: str) -> None:
        self.folder = folder
        self.others = False
        """The folder held parts of other work, which were removed."""
        if folder.exists(STATE) and folder.read_json(STATE) != identity:
            self.others = True
            for name in folder.names():
                if name != STATE and name.endswith(self.suffixes):
                    folder.remove(name)
        folder.write_json(STATE, identity)
        self._there = set(folder.names())

    def has(self, number: int) -> bool:
        return any(self.file(number, suffix) in self._there for suffix in self.suffixes)

    def file(self, number: int, suffix: str) -> str:
        """The name of a part's file."""
        return f"part-{number:06d}{suffix}"

    def remaining(self, count: int) -> list[int]:
        """Which of the parts 0 to count - 1 are not done."""
        return [number for number in range(count) if not self.has(number)]


def fingerprint_of(texts: Iterable[str]) -> str:
    """Changes with the texts put together."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()[:32]


def compute_remaining(
    remaining: Sequence[int],
    sizes: Sequence[int],
    results: Iterable[tuple[int, Result]],
    write: Callable[[int, Result], None],
    show: Callable[[int, int, float | None], None],
) -> int:
    """Write the result of every remaining part as it comes, and show the progress. Returns the rows of these parts.

    sizes: rows of every part. results: (index in `remaining`, result), in any order. show: (rows done, rows in all,
    seconds left or None at the end).
    """
    total, left = sum(sizes), sum(sizes[number] for number in remaining)
    began, done = time.monotonic(), 0
    for at, result in results:
        number = remaining[at]
        write(number, result)
        done += sizes[number]
        each = (time.monotonic() - began) / done
        show(total - left + done, total, each * (left - done) if done < left else None)
    return done


def fingerprint(batches: Sequence[EvaluationBatch], decoding: Decoding, models: dict[str, Any]) -> str:
    """Changes with all that changes an answer: rows, batches, decoding, and the models' content."""
    shared = json.dumps([decoding.model_dump(), models], sort_keys=True)
    return fingerprint_of([shared, *(json.dumps(batch.identity()) for batch in batches)])


class ResultParts(ResumableParts):
    """The results of an evaluation's batches."""

    suffixes = (".json", ".npz")

    def read(self, number: int) -> Result:
        if (name := self.file(number, ".npz")) in self._there:
            found = np.load(io.BytesIO(self.folder.read_bytes(name)), allow_pickle=False)
            return Embedded(found["vectors"], int(found["truncated"]))
        result: list[Any] = self.folder.read_json(self.file(number, ".json"))
        return result

    def write(self, number: int, result: Result) -> None:
        """Write one batch's result, the whole of it or nothing."""
        if isinstance(result, Embedded):
            name, content = self.file(number, ".npz"), io.BytesIO()
            np.savez(content, vectors=result.vectors, truncated=np.int64(result.truncated))
            self.folder.write_bytes(name, content.getvalue())
        else:
            name = self.file(number, ".json")
            self.folder.write_json(name, result)
        self._there.add(name)
