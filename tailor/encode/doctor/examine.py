"""Runs the checks of the doctor over all sources of a recipe, with the tasks of preparation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailor.encode.doctor.checks import CHECKS
from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.checks.left_out import LeftOut
from tailor.encode.doctor.checks.overlap import Overlap
from tailor.encode.doctor.checks.template import GenerationPrompt
from tailor.encode.doctor.finding import SEVERITIES, Finding, Found
from tailor.encode.doctor.rows import COLUMNS, Examined, Row, Tally
from tailor.encode.examples import Encoder
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.inputs import format_of
from tailor.encode.prepare import make_encoder, tasks_of
from tailor.encode.records import RowError
from tailor.encode.similarity.overlap import Reference, benchmark_reference, rows_of
from tailor.encode.similarity.signature_file import Blocks, SignatureFile, first_equal
from tailor.encode.similarity.signatures import Signer, is_installed
from tailor.encode.source_list import Sources
from tailor.encode.tasks import Runner, Task, first_rows, in_process, read_rows, split_of
from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import model_tokenizer
from tailor.encode.turns import TurnRules, turn_rules
from tailor.errors import TemplateError
from tailor.printable import printable
from tailor.spec.data import Benchmark, Data
from tailor.spec.methods.union import Method
from tailor.spec.model import Model

_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1 << 21
_POOL = np.dtype([("row", np.int64), ("value", np.uint64)])


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. rows: rows read. findings: the severe ones first."""

    rows: int
    findings: tuple[Finding, ...]

    def counts(self) -> dict[str, int]:
        """Severity -> number of findings."""
        return {level: sum(one.severity == level for one in self.findings) for level in SEVERITIES}

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            **self.counts(),
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class Examine:
    """Runs the checks on the rows of a task. encoder: None when the chat template cannot be used."""

    encoder: Encoder | None
    checks: tuple[Check, ...]
    holdout: float | None
    sources: tuple[tuple[str, int], ...]
    near: bool
    scorer: None = None

    def __call__(self, task: Task) -> Tally:
        tally = Tally(task.number)
        signer, signatures = Signer() if self.near else None, Blocks()
        source = self.sources.index((task.split, task.source))
        for batch in self._batches(task, source, tally):
            self._encode(batch)
            for row in batch:
                assert row.record is not None
                tally.put("source", row.source)
                tally.put("split", int(row.split != "train"))
                tally.put("number", row.number)
                tally.put("file", _file(tally.labels, row.label))
                for check in self.checks:
                    check.row(row, tally)
                if signer is not None:
                    signatures.append(signer(row.record, row.hashed))
        tally.columns = {name: np.array(values, COLUMNS[name]) for name, values in tally.columns.items()}
        tally.signatures = signatures.close()
        tally.pools = {name: np.array(pairs, _POOL) for name, pairs in tally.pools.items()}
        return tally

    def _batches(self, task: Task, source: int, tally: Tally) -> Iterator[list[Row]]:
        """The rows that have a record, in batches. The other ones are counted."""
        fmt, lost = get_format(task.format), next(one for one in self.checks if isinstance(one, LeftOut))
        batch: list[Row] = []
        characters = index = 0
        for label, number, row in read_rows(task, tally.lines):
            tally.rows += 1
            try:
                record, size = guarded(fmt, row, task.columns)
            except RowError as error:
                lost.lost(Row(source, task.split, label, number, -1, None, None, error), tally)
                continue
            split = split_of(task.split, self.holdout, record)
            batch.append(Row(source, split, label, number, index, record, None, None))
            index, characters = index + 1, characters + size
            if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _encode(self, batch: Sequence[Row]) -> None:
        """Set the examples of rows, and why a row would be left out."""
        if self.encoder is None:
            return
        results = self.encoder.encode([row.record for row in batch if row.record is not None])
        for row, result in zip(batch, results, strict=True):
            if isinstance(result, RowError):
                row.error = result
            else:
                row.examples = result
                fitted = self.encoder.fit(result)
                row.error = fitted if isinstance(fitted, RowError) else None


def examine(
    data: Data,
    model: Model,
    method: Method,
    *,
    benchmarks: Sequence[Benchmark] = (),
    runner: Runner = in_process,
) -> Diagnosis:
    """Examine the sources of a recipe. benchmarks: compared in addition to those of `data.decontaminate`.

    Raises DataError for sources and benchmarks that cannot be read, and ModelError for the tokenizer.
    """
    sources = Sources.of(data, method)
    encoder, template = _encoder(data, model, method, sources)
    recipe = benchmark_reference(data.decontaminate, "data.decontaminate") if data.decontaminate else None
    named = benchmark_reference(benchmarks, "--benchmark") if benchmarks else None
    evaluation = None
    if data.evaluation:
        rows = (rows_of(source, f"data.evaluation[{at}]") for at, source in enumerate(data.evaluation))
        evaluation = Reference(rows, short=False)
    overlap = Overlap(recipe, named, evaluation, [benchmark.path for benchmark in benchmarks])
    checks = (*CHECKS, template, overlap)
    order = tuple((split, index) for split, index, _ in sources)
    near = is_installed()
    tasks = tasks_of(sources)
    tallies: dict[int, Tally] = {}
    with ExitStack() as stack:
        signatures = stack.enter_context(SignatureFile()) if near else None
        for tally in runner(Examine(encoder, checks, data.holdout, order, near), tasks):
            if signatures is not None:
                signatures.add(tally.number, tally.signatures)
                tally.signatures = []
            tallies[tally.number] = tally
        names = [printable(f"data.{split}[{index}] {one.source.path}") for split, index, one in sources]
        examined = _merged(data, method, names, tasks, [tallies[task.number] for task in tasks])
        if signatures is not None:
            examined.near = signatures.first_similar(first_equal(examined.columns["hash"]))
    found = [finding for check in checks for finding in check.findings(examined)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(examined.rows, tuple(found))


def _encoder(
    data: Data, model: Model, method: Method, sources: Sources
) -> tuple[Encoder | None, GenerationPrompt]:
    """The encoder, which drops long rows, and the check of the chat template, which may say why there is no encoder."""
    tokenizer = model_tokenizer(model, data.template).with_date(data.date)
    rules: TurnRules | None = None
    if sources.chats:
        try:
            tokenizer = with_arguments(tokenizer, data.template_arguments)
            rules = turn_rules(tokenizer)
        except TemplateError as error:
            return None, GenerationPrompt(tokenizer, None, str(error))
    dropping = data.model_copy(update={"on_long": "drop", "chunk": None, "retrieve": None})
    return make_encoder(
        dropping, method, tokenizer, rules, text_format=format_of(model, method)
    ), GenerationPrompt(tokenizer, rules)


def _merged(
    data: Data, method: Method, sources: list[str], tasks: Sequence[Task], tallies: Sequence[Tally]
) -> Examined:
    """The counts of all tasks, whose row numbers become those of the files."""
    found: dict[str, Found] = {}
    files: list[str] = []
    pools: dict[str, list[np.ndarray]] = {}
    rows = 0
    for tally, offset in zip(tallies, first_rows(tasks, [tally.lines for tally in tallies]), strict=True):
        for kind, own in tally.found.items():
            found.setdefault(kind, Found()).merge(own, offset)
        for name, pool in tally.pools.items():
            pool["row"] += rows
            pools.setdefault(name, []).append(pool)
        if tally.columns:
            tally.columns["number"] += offset
            tally.columns["file"] += len(files)
            rows += len(tally.columns["number"])
        files += tally.labels
    empty = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
    filled = [tally.columns for tally in tallies if tally.columns] or [empty]
    columns = {name: np.concatenate([own[name] for own in filled]) for name in COLUMNS}
    joined = {name: np.concatenate(parts) for name, parts in pools.items()}
    total = sum(tally.rows for tally in tallies)
    return Examined(data, method, sources, total, found, columns, joined, files, None)


def _file(labels: list[str], label: str) -> int:
    """The index of the current file among those of a task."""
    if label not in labels[-1:]:
        labels.append(label)
    return len(labels) - 1
