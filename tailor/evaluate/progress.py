"""Resumable work: the result of each finished part is one file, so that killed work continues where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.evaluate.batches import Embedded, EvaluationBatch, Result
from tailor.layout import LOCK, STATE
from tailor.spec.suite import Decoding
from tailor.store import JsonFile, Store
from tailor.store.removal import refuse_foreign

_PART = re.compile(r"part-\d{6}\.\w+|asked-[0-9a-f]{32}\.json")


class _State(TypedDict):
    identity: str


class _Result(TypedDict):
    result: list[Any]


STATE_FILE = JsonFile(_State, "remove {folder} and run the same command again: it starts from the first part")
RESULT_FILE = JsonFile(_Result, "remove {file} and run the same command again: it computes this part again")


class ResumableParts:
    """The finished parts in a folder, numbered from 0, and the identity of the work that they belong to.

    Parts of work with another identity are removed when the folder is opened. DeletionError when it has other files.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the part files."""

    def __init__(self, folder: Store, identity: str) -> None:
        self.folder = folder
        refuse_foreign(folder.url, folder.files(), self.made)
        self.discarded = False
        """Whether the folder had parts of other work, which were removed."""
        if folder.exists(STATE) and STATE_FILE.read(folder, STATE)["identity"] != identity:
            self.discarded = True
            for name in folder.names():
                if name != STATE and name.endswith(self.suffixes):
                    folder.remove(name)
        STATE_FILE.write(folder, STATE, {"identity": identity})
        self._existing = set(folder.names())

    @classmethod
    def made(cls, name: str) -> bool:
        """Whether this class, or the lock of the work, makes a file of this name."""
        return name in (STATE, LOCK) or (_PART.fullmatch(name) is not None and name.endswith(cls.suffixes))

    def remove(self) -> None:
        """Remove the folder, when its results are elsewhere."""
        parent, name = posixpath.split(self.folder.url.rstrip("/"))
        Store(parent).remove(name, self.made)

    def has(self, number: int) -> bool:
        return any(self.file(number, suffix) in self._existing for suffix in self.suffixes)

    def file(self, number: int, suffix: str) -> str:
        """The file name of a part."""
        return f"part-{number:06d}{suffix}"

    def remaining(self, count: int) -> list[int]:
        """The numbers, from 0 to count - 1, of the parts that are not done."""
        return [number for number in range(count) if not self.has(number)]


def fingerprint_of(texts: Iterable[str]) -> str:
    """A hash of the concatenated texts."""
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
    """Write the result of each remaining part when it arrives, and show the progress. Returns the rows of these parts.

    sizes: rows of every part. results: (index in `remaining`, result), in any order. show: called with (rows done,
    rows in total, estimated seconds left or None at the end).
    """
    total, remaining_rows = sum(sizes), sum(sizes[number] for number in remaining)
    started, done = time.monotonic(), 0
    for at, result in results:
        number = remaining[at]
        write(number, result)
        done += sizes[number]
        each = (time.monotonic() - started) / done
        show(
            total - remaining_rows + done,
            total,
            each * (remaining_rows - done) if done < remaining_rows else None,
        )
    return done


def fingerprint(batches: Sequence[EvaluationBatch], decoding: Decoding, models: dict[str, Any]) -> str:
    """A hash of everything that decides the results: rows, batches, decoding, and the models' content."""
    shared = json.dumps([decoding.model_dump(), models], sort_keys=True)
    return fingerprint_of([shared, *(json.dumps(batch.identity()) for batch in batches)])


class ResultParts(ResumableParts):
    """The results of an evaluation's batches: JSON, or .npz for embeddings; and replies to requests, by their content."""

    suffixes = (".json", ".npz")

    def read(self, number: int) -> Result:
        if (name := self.file(number, ".npz")) in self._existing:
            arrays = np.load(io.BytesIO(self.folder.read_bytes(name)), allow_pickle=False)
            return Embedded(arrays["vectors"], int(arrays["truncated"]))
        result: list[Any] = RESULT_FILE.read(self.folder, self.file(number, ".json"))["result"]
        return result

    def reply(self, request: str) -> str | None:
        """The reply to a request that was kept. None if there is none."""
        name = _asked(request)
        if name not in self._existing:
            return None
        return str(RESULT_FILE.read(self.folder, name)["result"][0])

    def keep(self, request: str, reply: str) -> None:
        """Keep the reply to a request, so that a resumed evaluation does not send it again."""
        name = _asked(request)
        RESULT_FILE.write(self.folder, name, {"result": [reply]})
        self._existing.add(name)

    def write(self, number: int, result: Result) -> None:
        """Write the result of one batch atomically."""
        if isinstance(result, Embedded):
            name, content = self.file(number, ".npz"), io.BytesIO()
            np.savez(content, vectors=result.vectors, truncated=np.int64(result.truncated))
            self.folder.write_bytes(name, content.getvalue())
        else:
            name = self.file(number, ".json")
            RESULT_FILE.write(self.folder, name, {"result": result})
        self._existing.add(name)


def _asked(request: str) -> str:
    return f"asked-{fingerprint_of([request])}.json"
