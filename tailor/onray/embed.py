"""`tailor embed`: the texts of any number of rows as embeddings, by one process or by Ray's workers."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tailor import machine
from tailor.encode.readers import FileRange
from tailor.errors import DataError, StoreError
from tailor.evaluate.batches import EMBED, Embedded, EvaluationBatch, Result
from tailor.evaluate.embed_file import (
    EMBEDDING,
    ROW,
    Batch,
    EmbeddingParts,
    Request,
    find_input,
    fingerprint,
    is_own,
    read_batches,
    scan_input,
)
from tailor.evaluate.models import find_model
from tailor.evaluate.progress import compute_remaining
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.onray.display import Display
from tailor.onray.sharing import choose_workers
from tailor.runs.lock import lock
from tailor.runs.words import duration
from tailor.spec.suite import Decoding
from tailor.store import Store


@dataclass(frozen=True)
class Outcome:
    """What was written: the file, its rows, and how many of their texts were longer than the model reads."""

    url: str
    rows: int
    truncated: int


def embed(
    target: str,
    request: Request,
    to: str,
    display: Display,
    *,
    workers: int | None = None,
    address: str | None = None,
    verbose: bool = False,
) -> Outcome:
    """Embed every row of the input by a run or model, and write the Parquet file `to`, on any fsspec URL.

    What is done stands beside it in `NAME.unfinished` until the file is whole, so that the same call goes on after it
    was killed. Every row is read before the model is loaded. Raises a TailorError for what the user can fix.
    """
    machine.wait_without_spinning()
    if ROW in request.keep or EMBEDDING in request.keep:
        raise DataError(f"--keep: the file has columns {ROW} and {EMBEDDING} of its own")
    model = find_model(target)
    require_embeddings(model.artifact.url)
    if not to.endswith(".parquet"):
        raise StoreError(f"{to} is no Parquet file", hint="give the output a name that ends in .parquet")
    place, name = posixpath.split(Store(to).url.rstrip("/"))
    parent = Store(place)
    if parent.exists(name) and not is_own(parent, name):
        raise StoreError(
            f"{to} is there already, and is no file of `tailor embed`",
            hint="name a file that is not there yet",
        )
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        found = find_input(request)
        sizes, kept = scan_input(found, request)
        parts = EmbeddingParts(unfinished, fingerprint(found, request, model.identity()), kept)
        if parts.discarded:
            display.line("an unfinished file of another input, model or setting was removed")
        open_batches = parts.remaining(len(sizes))
        if len(open_batches) < len(sizes):
            there = sum(sizes) - sum(sizes[number] for number in open_batches)
            display.line(f"going on: {there:,} of {sum(sizes):,} rows were done before")
        if open_batches:
            _, runner = choose_workers(workers, address, display, stack, verbose)
            display.doing("loading the model")
            source = _Source(model.label, found, request, open_batches)

            def write(number: int, result: Result) -> None:
                assert isinstance(result, Embedded)
                parts.write(number, source.waiting.pop(number), result)

            began = time.monotonic()
            results = runner([model.ref], Decoding(), source)
            done = compute_remaining(open_batches, sizes, results, write, display.embedding)
            display.line(f"{done:,} rows in {duration(time.monotonic() - began)}")
        display.doing("writing the file")
        about = {
            "model": model.ref.url,
            "instruction": request.instruction,
            "columns": request.columns,
        }
        truncated = parts.join(parent, name, len(sizes), about)
    parent.remove(f"{name}.unfinished")
    return Outcome(parent.url_of(name), sum(sizes), truncated)


class _Source:
    """Batches to embed as they are asked for, so that only those that workers have are in memory. waiting: their batches."""

    def __init__(
        self, model: str, parts: Sequence[FileRange], request: Request, numbers: Sequence[int]
    ) -> None:
        self._model, self._parts, self._request = model, parts, request
        self._wanted = set(numbers)
        self.waiting: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for number, batch in enumerate(read_batches(self._parts, self._request)):
            if number in self._wanted:
                self.waiting[number] = batch
                yield EvaluationBatch(
                    self._model,
                    "input",
                    EMBED,
                    tuple(range(len(batch.texts))),
                    batch.texts,
                    self._request.instruction,
                    self._request.dimension,
                )
