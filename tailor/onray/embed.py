"""`tailor embed`: computes an embedding for every row of the input, in this process or on Ray workers."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tailor import machine
from tailor.encode.readers import FileRange
from tailor.errors import DataError, StoreError
from tailor.evaluate.batches import EMBED, EMBED_WITH_KEY_VALUES, Embedded, EvaluationBatch, Result
from tailor.evaluate.embed_file import (
    Batch,
    EmbeddingParts,
    Request,
    coding_of,
    find_input,
    fingerprint,
    read_batches,
    scan_input,
)
from tailor.evaluate.models import find_model, identity_hash
from tailor.evaluate.progress import compute_remaining
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.evaluate.written_embeddings import EMBEDDING, ROW, is_own
from tailor.models.own_code import NOTHING, Trust
from tailor.onray.display import Display
from tailor.onray.sharing import choose_workers
from tailor.runs.lock import lock
from tailor.runs.words import duration
from tailor.spec.suite import Decoding
from tailor.store import Store
from tailor.store.scratch import sweep


@dataclass(frozen=True)
class Outcome:
    """Result of `embed`."""

    url: str
    """The Parquet file."""
    rows: int
    truncated: int
    """Number of rows whose text was longer than the model's maximum length."""


def embed(
    target: str,
    request: Request,
    to: str,
    display: Display,
    *,
    workers: int | None = None,
    address: str | None = None,
    trust: Trust = NOTHING,
    verbose: bool = False,
) -> Outcome:
    """Embed every row of the input with a run or model and write the Parquet file `to`, a path or fsspec URL.

    trust: the own code of the model that may run.

    Finished batches are stored next to it in the folder `NAME.unfinished`, so that the same call resumes after it was
    killed; the folder is removed at the end. All rows are read and checked before the model is loaded. Raises a
    TailorError for errors that the user can fix.
    """
    machine.wait_without_spinning()
    sweep()
    if ROW in request.keep or EMBEDDING in request.keep:
        raise DataError(
            f"--keep: {ROW} and {EMBEDDING} are columns that tailor writes, so input columns cannot have these names"
        )
    model = find_model(target).trusting(trust)
    require_embeddings(model.artifact.url)
    if not to.endswith(".parquet"):
        raise StoreError(
            f"{to} is not the name of a Parquet file", hint="give the output a name that ends in .parquet"
        )
    folder, name = posixpath.split(Store(to).url.rstrip("/"))
    parent = Store(folder)
    if parent.exists(name) and not is_own(parent, name):
        raise StoreError(
            f"{to} already exists, and was not written by `tailor embed`",
            hint="choose a file that does not exist yet",
        )
    coding = coding_of(request, model)
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        files = find_input(request)
        scanned = scan_input(files, request)
        sizes = scanned.sizes
        for column, count in scanned.absent.items():
            display.line(f"{count:,} of {sum(sizes):,} rows have no `{column}`")
        ranges = coding.about(0) if coding is not None else None
        identity = fingerprint(files, request, [model.identity(), ranges] if ranges else model.identity())
        parts = EmbeddingParts(unfinished, identity, scanned.kept, request.dtype)
        if parts.discarded:
            display.line("removed the unfinished results of a different input, model or setting")
        open_batches = parts.remaining(len(sizes))
        if len(open_batches) < len(sizes):
            done_before = sum(sizes) - sum(sizes[number] for number in open_batches)
            display.line(f"resuming: {done_before:,} of {sum(sizes):,} rows are already done")
        if open_batches:
            _, runner = choose_workers(workers, address, display, stack, verbose)
            display.doing("loading the model")
            source = _Source(model.label, files, request, open_batches)

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
            "model_hash": identity_hash(model),
            "instruction": request.instruction,
            "columns": request.columns,
        }
        if request.key_values:
            about |= {"key_values": identity}
            parts.join_key_values(
                parent,
                name,
                len(sizes),
                {"identity": identity, "rows": request.batch_rows},
            )
        truncated = parts.join(parent, name, len(sizes), about, coding)
    parts.remove()
    return Outcome(parent.url_of(name), sum(sizes), truncated)


class _Source:
    """Iterable of the batches `numbers`. It reads them on demand: only those that workers process are in memory.

    waiting: number -> batch, for the batches whose result has not arrived yet.
    """

    def __init__(
        self, model: str, parts: Sequence[FileRange], request: Request, numbers: Sequence[int]
    ) -> None:
        self._model, self._parts, self._request = model, parts, request
        self._numbers = set(numbers)
        self.waiting: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for number, batch in enumerate(read_batches(self._parts, self._request)):
            if number in self._numbers:
                self.waiting[number] = batch
                yield EvaluationBatch(
                    self._model,
                    "input",
                    EMBED_WITH_KEY_VALUES if self._request.key_values else EMBED,
                    tuple(range(len(batch.texts))),
                    batch.texts,
                    self._request.instruction,
                    self._request.dimension,
                )
