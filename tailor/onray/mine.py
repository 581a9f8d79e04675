"""`tailor mine`: adds hard negatives to rows of queries. Texts are embedded in this process or on Ray workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tailor import machine
from tailor.encode.records import Relevance
from tailor.evaluate.batches import Embedded, EvaluationBatch, embedding
from tailor.evaluate.mining import BM25, RANDOM
from tailor.evaluate.mining.choice import Choice
from tailor.evaluate.mining.passages import (
    Passages,
    common_instruction,
    passages_of_rows,
    read_passages,
)
from tailor.evaluate.mining.retrievers import Task, at_random, by_bm25, by_embeddings
from tailor.evaluate.mining.rows import first_of, written
from tailor.evaluate.models import EvaluatedModel, find_model
from tailor.evaluate.progress import ResultParts, fingerprint
from tailor.evaluate.retrieval.collection import Text
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.models.own_code import NOTHING, Trust
from tailor.onray.display import Display
from tailor.onray.query_files import output_file, read_rows
from tailor.onray.sharing import choose_workers, compute
from tailor.runs.lock import lock
from tailor.spec.suite import Decoding
from tailor.store import Store
from tailor.store.scratch import sweep


@dataclass(frozen=True)
class Corpus:
    """The passages to choose from. path: their file or folder; None: the passages of the rows.

    columns: of the text. instruction: of the passages; None: that of the rows' positive passages.
    """

    path: str | None = None
    columns: tuple[str, ...] = ("text",)
    instruction: str | None = None


@dataclass(frozen=True)
class Mined:
    """Result of `mine`. Rows that could not be read are not written."""

    url: str
    rows: int
    passages: int
    """Number of distinct passages to choose from."""
    negatives: int
    """Number of negatives in all rows."""
    without: int
    """Number of rows without a negative."""
    unreadable: int
    unreadable_passages: int
    truncated: int
    """Number of texts that were longer than the model's maximum length."""


def mine(
    retriever: str,
    rows: str,
    to: str,
    display: Display,
    *,
    corpus: Corpus,
    choice: Choice,
    workers: int | None = None,
    address: str | None = None,
    trust: Trust = NOTHING,
    verbose: bool = False,
) -> Mined:
    """Choose negatives for every row of `rows` and write the rows to the JSONL file `to`, a path or fsspec URL.

    retriever: a run or model that makes embeddings, `bm25` or `random`. trust: the own code of the model that may run.

    Finished batches of embeddings are stored next to the file in the folder `NAME.unfinished`, so that the same call resumes
    after it was killed. The number of workers does not change the result. Raises a TailorError for errors that the user can fix.
    """
    machine.wait_without_spinning()
    sweep()
    model = None
    if retriever not in (BM25, RANDOM):
        model = find_model(retriever).trusting(trust)
        require_embeddings(model.artifact.url)
    parent, name = output_file(to)
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        read = read_rows(rows, display)
        records = read.records
        passages = _passages(corpus, records, display)
        task = Task.of(records, passages, choice)
        truncated = 0
        if model is None:
            display.doing("choosing negatives")
            negatives = by_bm25(task) if retriever == BM25 else at_random(task)
        else:
            batches, parts = _batches(model, records, passages, unfinished, display)
            _, runner = choose_workers(workers, address, display, stack, verbose)
            show = display.embedding
            for result in compute(batches, [model.ref], Decoding(), runner, parts, display, show):
                assert isinstance(result, Embedded)
                truncated += result.truncated
            display.doing("choosing negatives")
            negatives = by_embeddings(task, batches, parts)
        mined = [
            Relevance(record.query, record.positives, tuple(passages.texts[at] for at in chosen))
            for record, chosen in zip(records, negatives, strict=True)
        ]
        with parent.open(name, "wb") as stream:
            stream.writelines(written(read.rows, mined))
    parent.remove(f"{name}.unfinished", ResultParts.made)
    return Mined(
        parent.url_of(name),
        len(records),
        task.candidates,
        sum(map(len, negatives)),
        sum(not chosen for chosen in negatives),
        read.unreadable.count,
        passages.unreadable.count,
        truncated,
    )


def _passages(corpus: Corpus, records: Sequence[Relevance], display: Display) -> Passages:
    if corpus.path is None:
        passages = passages_of_rows(records)
    else:
        instruction = common_instruction(records) if corpus.instruction is None else corpus.instruction
        passages = read_passages(corpus.path, corpus.columns, instruction or None)
        if passages.duplicates:
            display.line(f"{passages.duplicates:,} passages of the corpus repeat an earlier one")
    if count := passages.unreadable.count:
        display.line(
            f"left out {count:,} rows of the corpus that cannot be read{first_of(passages.unreadable)}"
        )
    return passages


def _batches(
    model: EvaluatedModel,
    records: Sequence[Relevance],
    passages: Passages,
    unfinished: Store,
    display: Display,
) -> tuple[list[EvaluationBatch], ResultParts]:
    """The batches of texts to embed, first those of the queries, and the ones that are done."""
    queries = [Text("", text, instruction) for instruction, text in (record.query for record in records)]
    texts = [Text("", text, instruction) for instruction, text in passages.texts]
    batches = [
        *embedding(model.label, "queries", queries),
        *embedding(model.label, "passages", texts),
    ]
    identity = fingerprint(batches, Decoding(), {model.label: model.identity()})
    parts = ResultParts(unfinished, identity)
    if parts.discarded:
        display.line("removed the unfinished results of other rows, another corpus or another model")
    return batches, parts
