"""Preparation: encode the sources once, into a token store whose name is a fingerprint of everything that determines tokens."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tailor.data.blocks import Blocks
from tailor.data.token_store import MANIFEST, MANIFEST_FILE, SPLITS, TokenStore, blocks_file
from tailor.encode.columns import require_columns
from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.examples import Encoder
from tailor.encode.fingerprint import ENCODE_VERSION, fingerprint_of
from tailor.encode.inputs import Inputs
from tailor.encode.leakage import distinct_hashes, leaks
from tailor.encode.report import Lengths, TaskReport, check_budget, source_report, split_report
from tailor.encode.similarity.overlap import benchmark_reference
from tailor.encode.similarity.selection import without_duplicates
from tailor.encode.source_list import Sources
from tailor.encode.sources import Resolved, cut
from tailor.encode.tasks import Runner, Task, Work, first_rows, in_process, task_of
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import Scorer
from tailor.encode.turns import TurnRules
from tailor.encode.unused import merged
from tailor.spec.data import Budget, Data
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.store import Store

_SHARD = re.compile(r"(train|evaluation)-(\d+(-\d+)?|blocks)\.arrow")
_STAGING = re.compile(r"\.staging-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Progress:
    """Progress of preparation. bytes: of the source files."""

    rows: int
    bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Prepared:
    """Prepared tokens. reused: whether they already existed."""

    tokens: TokenStore
    reused: bool


def prepare(
    data: Data,
    model: Model,
    method: Method,
    store_url: str,
    *,
    inputs: Inputs | None = None,
    scorer: Scorer | None = None,
    runner: Runner = in_process,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Encode the recipe's sources into the token store at `store_url`, or reuse its tokens, and check the budget.

    inputs: of these sections, if they are open already. scorer: the embedder of `data.retrieve.embedder`, opened by
    `artifacts.dense.scorer_of`. progress: called after each task. Raises DataError (missing or empty sources, more lost rows than the budget allows), TemplateError, ModelError and
    StoreError.
    """
    prepared = prepare_all(
        data, model, method, store_url, inputs=inputs, scorer=scorer, runner=runner, progress=progress
    )
    check_budget(prepared.tokens.manifest["report"], data.budget)
    return prepared


def prepare_all(
    data: Data,
    model: Model,
    method: Method,
    store_url: str,
    *,
    inputs: Inputs | None = None,
    scorer: Scorer | None = None,
    runner: Runner = in_process,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Same as `prepare`, but without the budget check, so that a report can show the lost rows."""
    found = inputs or Inputs.of(data, model, method)
    sources, tokenizer, rules, texts = found.sources, found.tokenizer, found.rules, found.text_format
    fingerprint = fingerprint_of(data, method, tokenizer, sources, scorer, texts)
    root = Store(store_url)
    reused = root.exists(f"{fingerprint}/{MANIFEST}")
    if not reused:
        train = fingerprint_of(data, method, tokenizer, sources, scorer, texts, splits=("train",))
        encoder = make_encoder(data, method, tokenizer, rules, scorer, texts)
        _write(root, fingerprint, train, data, encoder, rules, sources, runner, progress)
    return Prepared(TokenStore.open(root.join(fingerprint).url), reused)


def make_encoder(
    data: Data,
    method: Method,
    tokenizer: Tokenizer,
    rules: TurnRules | None,
    scorer: Scorer | None = None,
    text_format: TextFormat = GRITLM,
) -> Encoder:
    """The encoder for a recipe's rows. A method that joins documents has no limit per example. text_format: see `format_of`."""
    embedder = data.retrieve.embedder if data.on_long == "retrieve" and data.retrieve is not None else None
    assert (embedder is None) == (scorer is None)
    return Encoder(
        tokenizer,
        rules,
        train_on=method.encoded_turns,
        max_length=None if method.joins else data.max_length,
        on_long=data.on_long,
        min_length=data.min_length,
        chunk=data.chunk,
        retrieve=data.retrieve,
        scorer=scorer,
        limits=method.answer_limits,
        text_limits=method.text_limits(data.max_length),
        text_format=text_format,
        drop_reasoning=data.reasoning == "drop",
    )


def _write(
    root: Store,
    fingerprint: str,
    train_fingerprint: str,
    data: Data,
    encoder: Encoder,
    rules: TurnRules | None,
    sources: Sources,
    runner: Runner,
    progress: Callable[[Progress], None] | None,
) -> None:
    root.make()
    _sweep(root)
    name = f".staging-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    staging = root.join(name)
    tasks = tasks_of(sources, scored=encoder.scorer is not None)
    try:
        benchmarks = None
        if data.decontaminate:
            benchmarks = benchmark_reference(data.decontaminate, "data.decontaminate")
        if data.deduplicate is not None:
            tasks = without_duplicates(runner, tasks, near=data.deduplicate == "near")
        work = Work(encoder, data.holdout, staging.url, data.max_length, benchmarks=benchmarks)
        reports, lengths = _run(runner, work, tasks, progress)
        manifest = _manifest(
            fingerprint, train_fingerprint, encoder.tokenizer, rules, sources, tasks, reports, lengths
        )
        if not any(source["kept"] for source in manifest["report"]["sources"]):
            check_budget(manifest["report"], Budget())
        for split in SPLITS:
            blocks = Blocks.join(part for report in reports for part in report.blocks.get(split, ()))
            blocks.write(staging, blocks_file(split), data.max_length)
        MANIFEST_FILE.write(staging, MANIFEST, manifest)
        _publish(root, staging, name, fingerprint)
    finally:
        root.remove(name)


def _publish(root: Store, staging: Store, name: str, fingerprint: str) -> None:
    """Rename the staging folder to its final name. If another run was faster, its folder has the same content and stays."""
    if staging.is_local:
        if not root.rename(name, fingerprint) and not root.exists(f"{fingerprint}/{MANIFEST}"):
            root.remove(fingerprint, lambda file: _SHARD.fullmatch(file) is not None)
            root.rename(name, fingerprint)
        return
    for child in staging.names():
        if child != MANIFEST:
            root.rename(f"{name}/{child}", f"{fingerprint}/{child}")
    root.write_bytes(f"{fingerprint}/{MANIFEST}", staging.read_bytes(MANIFEST))


def _sweep(root: Store) -> None:
    """Remove staging folders of processes of this machine that have ended."""
    for name in root.names():
        match = _STAGING.fullmatch(name)
        if match and match["host"] == socket.gethostname() and not _alive(int(match["pid"])):
            root.remove(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tasks_of(sources: Sources, *, scored: bool = False) -> list[Task]:
    """The tasks of all sources, in the order of the recipe. scored: an embedding model scores passages."""
    tasks: list[Task] = []
    for split, index, resolved in sources:
        for parts in cut(resolved, scored=scored):
            tasks.append(task_of(resolved, split, index, parts, number=len(tasks)))
    return tasks


def _run(
    runner: Runner, work: Work, tasks: Sequence[Task], progress: Callable[[Progress], None] | None
) -> tuple[list[TaskReport], Lengths]:
    """The reports of the tasks in their order, and the lengths of the examples. Those of evaluation sources run first."""
    reports: dict[int, TaskReport] = {}
    lengths = Lengths()
    total, rows, size = sum(task.size for task in tasks), 0, 0
    for split in ("evaluation", "train"):
        part = [task for task in tasks if task.split == split]
        if not part:
            continue
        work = replace(work, evaluated=distinct_hashes(reports.values()))
        for report in runner(work, part):
            reports[report.number] = report
            task = tasks[report.number]
            lengths.take(report, task.split, task.source)
            rows, size = rows + report.rows, size + task.size
            if progress is not None:
                progress(Progress(rows, size, total))
    return [reports[task.number] for task in tasks], lengths


def _manifest(
    fingerprint: str,
    train_fingerprint: str,
    tokenizer: Tokenizer,
    rules: TurnRules | None,
    sources: Sources,
    tasks: Sequence[Task],
    reports: list[TaskReport],
    lengths: Lengths,
) -> dict[str, Any]:
    shards, source_reports = [], []
    training = [report for task, report in zip(tasks, reports, strict=True) if task.split == "train"]
    template = tokenizer.template if rules is not None else None
    for split, index, resolved in sources:
        numbers = [at for at, task in enumerate(tasks) if (task.split, task.source) == (split, index)]
        task_reports = [reports[number] for number in numbers]
        _require_columns(resolved, f"data.{split}[{index}] {resolved.source.path}", task_reports)
        shards += _numbered([tasks[number] for number in numbers], task_reports)
        counts = source_report(
            task_reports,
            lengths.of_source(split, index),
            split=split,
            index=index,
            path=resolved.source.path,
            fmt=resolved.format,
            detected=resolved.detected,
        )
        text = "" if template is None else template.text + (template.tool_use or "")
        counts["unused"] = merged([report.unused for report in task_reports], text)
        counts["changes"] = merged([report.changes for report in task_reports])
        if split == "evaluation":
            counts["in_training"] = leaks(task_reports, training)
        source_reports.append(counts)
    return {
        "fingerprint": fingerprint,
        "train_fingerprint": train_fingerprint,
        "encode_version": ENCODE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "template": None
        if template is None or rules is None
        else {
            "name": template.name,
            "text": template.text,
            "tool_use": template.tool_use,
            "date": template.date,
            "end_of_turn_ids": list(rules.end_ids),
            "end_of_turn": list(rules.end_texts),
        },
        "shards": shards,
        "report": {
            "sources": source_reports,
            "train": split_report(reports, lengths.of_split("train"), "train"),
            "evaluation": split_report(reports, lengths.of_split("evaluation"), "evaluation"),
        },
    }


def _require_columns(resolved: Resolved, context: str, reports: Sequence[TaskReport]) -> None:
    """DataError when `columns` names a column that no row has.

    Not if no row is read, which is an error of its own, or if `limit` ends reading: later rows may have the column.
    """
    source = resolved.source
    kept, rows = (sum(getattr(report, name) for report in reports) for name in ("kept", "rows"))
    if not kept or (source.limit is not None and rows >= source.limit):
        return
    require_columns(
        ((f"columns.{field}", column) for field, column in source.columns.items()),
        {column for report in reports for column in report.named},
        (column for report in reports for column in report.seen),
        resolved.files,
        context,
    )


def _numbered(tasks: Sequence[Task], reports: Sequence[TaskReport]) -> list[dict[str, Any]]:
    """The shards of a source for the manifest. `first_row` is the number of rows in the file before the task's range.

    Also adds it to the row numbers of lost rows in the reports.
    """
    shards = []
    for report, first in zip(reports, first_rows(tasks, [report.lines for report in reports]), strict=True):
        if first:
            lists = [*report.lost_rows.values(), *report.unused.values(), *report.changes.values()]
            for rows in lists:
                rows.first = [(name, row + first, detail) for name, row, detail in rows.first]
            report.hashed_rows = [(name, row + first) for name, row in report.hashed_rows]
        shards += [{**asdict(shard), "first_row": first} for shard in report.shards]
    return shards
