"""`tailor score`: adds a teacher's scores to the passages of rows, in this process or on Ray workers."""

from __future__ import annotations

import posixpath
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from tailor import machine
from tailor.artifacts.cross_encoder import find_cross_encoder, require_package
from tailor.evaluate.batches import ModelRef
from tailor.evaluate.mining.rows import written
from tailor.evaluate.mining.teacher import cross_encoder_batches, embedder_batches, scores_of, truncated
from tailor.evaluate.models import find_model
from tailor.evaluate.progress import ResultParts, fingerprint
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.models import files
from tailor.models.own_code import NOTHING, Trust
from tailor.onray.display import Display
from tailor.onray.query_files import output_file, read_rows
from tailor.onray.sharing import choose_workers, compute
from tailor.runs.lock import lock
from tailor.spec.suite import Decoding
from tailor.store.scratch import sweep


@dataclass(frozen=True)
class Outcome:
    """Result of `score`. Rows that could not be read are not written."""

    url: str
    rows: int
    unreadable: int
    truncated: int
    """Number of texts, or of pairs of a cross-encoder, that were longer than the model's maximum length."""


@dataclass(frozen=True)
class _Teacher:
    """The model, a value that changes with its files, and whether it is a cross-encoder."""

    ref: ModelRef
    identity: Any
    reads_pairs: bool


def score(
    teacher: str,
    rows: str,
    to: str,
    display: Display,
    *,
    workers: int | None = None,
    address: str | None = None,
    trust: Trust = NOTHING,
    verbose: bool = False,
) -> Outcome:
    """Score the passages of every row and write the rows to the JSONL file `to`, with `pos_scores`, `neg_scores` and `teacher`.

    teacher: a cross-encoder, or a run or model that makes embeddings. trust: the own code of such a model that may run.

    Finished batches are stored next to the file in the folder `NAME.unfinished`, so that the same call resumes after it was
    killed. The number of workers does not change the result. Raises a TailorError for errors that the user can fix.
    """
    machine.wait_without_spinning()
    sweep()
    model = _find(teacher, trust)
    parent, name = output_file(to)
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        read = read_rows(rows, display)
        records = read.records
        make = cross_encoder_batches if model.reads_pairs else embedder_batches
        batches = make(model.ref.label, records)
        parts = ResultParts(unfinished, fingerprint(batches, Decoding(), {model.ref.label: model.identity}))
        if parts.discarded:
            display.line("removed the unfinished results of other rows or another teacher")
        _, runner = choose_workers(workers, address, display, stack, verbose)
        show = display.embedding
        results = list(compute(batches, [model.ref], Decoding(), runner, parts, display, show))
        display.doing("writing the rows")
        scored = [
            replace(record, scores=scores)
            for record, scores in zip(records, scores_of(records, batches, results), strict=True)
        ]
        with parent.open(name, "wb") as stream:
            stream.writelines(written(read.rows, scored, model.ref.label))
    parts.remove()
    return Outcome(parent.url_of(name), len(records), read.unreadable.count, truncated(results))


def _find(path: str, trust: Trust) -> _Teacher:
    """The teacher. ModelError when `path` is no such model."""
    if (folder := find_cross_encoder(path)) is not None:
        require_package(path)
        ref = ModelRef(posixpath.basename(path.rstrip("/")), path)
        return _Teacher(ref, files.contents(folder), reads_pairs=True)
    model = find_model(path).trusting(trust)
    require_embeddings(model.artifact.url)
    return _Teacher(model.ref, model.identity(), reads_pairs=False)
