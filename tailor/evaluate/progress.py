"""What an evaluation has done so far: one file per batch, so that a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tailor.evaluate.jobs import Embedded, Job, Result
from tailor.layout import STATE
from tailor.spec.suite import Decoding

if TYPE_CHECKING:
    from tailor.store import Store


def fingerprint(jobs: Sequence[Job], decoding: Decoding, models: dict[str, Any]) -> str:
    """Changes with all that changes an answer: rows, batches, decoding, and the models' content."""
    digest = hashlib.sha256(json.dumps([decoding.model_dump(), models], sort_keys=True).encode())
    for job in jobs:
        digest.update(json.dumps(asdict(job)).encode())
    return digest.hexdigest()[:32]


class Parts:
    """The results of an evaluation's batches in a folder."""

    def __init__(self, folder: Store, identity: str) -> None:
        self._folder = folder
        self.others = False
        """The folder held what belongs to another evaluation, which was removed."""
        if folder.exists(STATE) and folder.read_json(STATE) != identity:
            self.others = True
            for name in folder.names():
                if name.endswith((".json", ".npz")):
                    folder.remove(name)
        folder.write_json(STATE, identity)
        self._there = set(folder.names())

    def has(self, number: int) -> bool:
        return not self._there.isdisjoint((_name(number, "json"), _name(number, "npz")))

    def read(self, number: int) -> Result:
        if (name := _name(number, "npz")) in self._there:
            found = np.load(io.BytesIO(self._folder.read_bytes(name)), allow_pickle=False)
            return Embedded(found["vectors"], int(found["truncated"]))
        result: list[Any] = self._folder.read_json(_name(number, "json"))
        return result

    def write(self, number: int, result: Result) -> None:
        """Write one batch's result, the whole of it or nothing."""
        name = _name(number, "npz" if isinstance(result, Embedded) else "json")
        if isinstance(result, Embedded):
            content = io.BytesIO()
            np.savez(content, vectors=result.vectors, truncated=np.int64(result.truncated))
            self._folder.write_bytes(name, content.getvalue())
        else:
            self._folder.write_json(name, result)
        self._there.add(name)


def _name(number: int, suffix: str) -> str:
    return f"part-{number:06d}.{suffix}"
