"""Preparation: encode the sources once, into a token store whose name is a fingerprint of everything that determines tokens."""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from tailor.data.token_store import MANIFEST, MANIFEST_FILE, SPLITS, TokenStore
from tailor.encode.columns import require_columns
from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.examples import Encoder
from tailor.encode.formats import code_of, get_format
from tailor.encode.leakage import leaks
from tailor.encode.published_embedder import text_format as format_of_base
from tailor.encode.report import TaskReport, check_budget, source_report, split_report
from tailor.encode.similarity.overlap import benchmark_reference
from tailor.encode.similarity.selection import without_duplicates
from tailor.encode.sources import Resolved, content_of, cut, find_files, resolve, token_keys
from tailor.encode.tasks import Runner, Task, Work, first_rows, in_process
from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import Tokenizer, model_tokenizer
from tailor.encode.truncation import Scorer
from tailor.encode.turns import TurnRules, turn_rules
from tailor.encode.unused import merged
from tailor.errors import DataError
from tailor.spec.data import TEXTS, Benchmark, Budget, Chunk, Data, Retrieve
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.store import Store

ENCODE_VERSION = 7
"""Part of every fingerprint. Increase it when a change of the code gives other tokens, or other columns, for the same rows."""
_SHARD = re.compile(r"(train|evaluation)-\d+\.arrow")
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


@dataclass(frozen=True)
class Sources:
    """The resolved sources of a recipe."""

    train: tuple[Resolved, ...]
    evaluation: tuple[Resolved, ...]

    @classmethod
    def of(cls, data: Data, method: Method) -> Sources:
        """Resolve all sources. DataError for a source that is missing, empty or not in a format that the method reads."""
        train, evaluation = (
            tuple(
                resolve(source, f"data.{split}[{at}]", method)
                for at, source in enumerate(getattr(data, split))
            )
            for split in SPLITS
        )
        return cls(train, evaluation)

    def __iter__(self) -> Iterator[tuple[str, int, Resolved]]:
        """(split, index in the split's list, source) in the order of the recipe."""
        for split in SPLITS:
            for index, resolved in enumerate(getattr(self, split)):
                yield split, index, resolved

    @property
    def chats(self) -> bool:
        """Whether any source contains conversations, which need a chat template."""
        return any(get_format(resolved.format).is_chat for _, _, resolved in self)


def prepare(
    data: Data,
    model: Model,
    method: Method,
    store_url: str,
    *,
    scorer: Scorer | None = None,
    runner: Runner = in_process,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Encode the recipe's sources into the token store at `store_url`, or reuse its tokens, and check the budget.

    scorer: the embedder of `data.retrieve.embedder`, opened by `artifacts.dense.scorer_of`. progress: called after each
    task. Raises DataError (missing or empty sources, more lost rows than the budget allows), TemplateError, ModelError and
    StoreError.
    """
    prepared = prepare_all(data, model, method, store_url, scorer=scorer, runner=runner, progress=progress)
    check_budget(prepared.tokens.manifest["report"], data.budget)
    return prepared


def prepare_all(
    data: Data,
    model: Model,
    method: Method,
    store_url: str,
    *,
    scorer: Scorer | None = None,
    runner: Runner = in_process,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Same as `prepare`, but without the budget check, so that a report can show the lost rows."""
    sources = Sources.of(data, method)
    _check_questions(data, method, sources)
    tokenizer = model_tokenizer(model, data.template).with_date(data.date)
    if sources.chats:
        tokenizer = with_arguments(tokenizer, data.template_arguments)
    rules = turn_rules(tokenizer) if sources.chats else None
    texts = format_of(model, method)
    fingerprint = _fingerprint(data, method, tokenizer, sources, scorer, texts)
    root = Store(store_url)
    reused = root.exists(f"{fingerprint}/{MANIFEST}")
    if not reused:
        train = _fingerprint(data, method, tokenizer, sources, scorer, texts, splits=("train",))
        encoder = make_encoder(data, method, tokenizer, rules, scorer, texts)
        _write(root, fingerprint, train, data, encoder, rules, sources, runner, progress)
    return Prepared(TokenStore.open(root.join(fingerprint).url), reused)


def _check_questions(data: Data, method: Method, sources: Sources) -> None:
    """DataError for `on_long: retrieve` when every source is plain text."""
    only_texts = all(get_format(resolved.format).rows == TEXTS for _, _, resolved in sources)
    if data.on_long == "retrieve" and not method.joins and only_texts:
        raise DataError(
            "data.on_long: all sources are plain text, which has no question for which passages could be retrieved",
            hint="set data.on_long: chunk",
        )


def format_of(model: Model, method: Method) -> TextFormat:
    """The format of the texts that a recipe trains to embed."""
    return GRITLM if method.embedding is None else format_of_base(model.path, model.revision)


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
        work = Work(encoder, data.holdout, staging.url, bool(sources.evaluation), benchmarks)
        reports = _run(runner, work, tasks, progress)
        manifest = _manifest(
            fingerprint, train_fingerprint, encoder.tokenizer, rules, sources, tasks, reports
        )
        if not any(source["kept"] for source in manifest["report"]["sources"]):
            check_budget(manifest["report"], Budget())
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
        source = resolved.source
        for parts in cut(resolved, scored=scored):
            tasks.append(
                Task(
                    len(tasks),
                    split,
                    index,
                    parts,
                    resolved.format,
                    source.columns,
                    source.limit,
                    source.dataset_column,
                    instructions=(source.query_instruction, source.passage_instruction),
                )
            )
    return tasks


def _run(
    runner: Runner, work: Work, tasks: Sequence[Task], progress: Callable[[Progress], None] | None
) -> list[TaskReport]:
    reports: dict[int, TaskReport] = {}
    total, rows, size = sum(task.size for task in tasks), 0, 0
    for report in runner(work, tasks):
        reports[report.number] = report
        rows, size = rows + report.rows, size + tasks[report.number].size
        if progress is not None:
            progress(Progress(rows, size, total))
    return [reports[task.number] for task in tasks]


def _manifest(
    fingerprint: str,
    train_fingerprint: str,
    tokenizer: Tokenizer,
    rules: TurnRules | None,
    sources: Sources,
    tasks: Sequence[Task],
    reports: list[TaskReport],
) -> dict[str, Any]:
    shards, source_reports = [], []
    template = tokenizer.template if rules is not None else None
    for split, index, resolved in sources:
        numbers = [at for at, task in enumerate(tasks) if (task.split, task.source) == (split, index)]
        task_reports = [reports[number] for number in numbers]
        _require_columns(resolved, f"data.{split}[{index}] {resolved.source.path}", task_reports)
        shards += _numbered([tasks[number] for number in numbers], task_reports)
        counts = source_report(
            task_reports,
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
            counts["in_training"] = leaks(task_reports, reports)
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
            "train": split_report(reports, "train"),
            "evaluation": split_report(reports, "evaluation"),
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


def _fingerprint(
    data: Data,
    method: Method,
    tokenizer: Tokenizer,
    sources: Sources,
    scorer: Scorer | None,
    text_format: TextFormat,
    splits: Sequence[str] = SPLITS,
) -> str:
    """A hash of everything that determines the tokens: rows, tokenizer, template, embedder, code version and settings.

    splits: the splits whose sources are included.
    """
    import xxhash

    template = tokenizer.require_template() if sources.chats else None
    limits, texts = method.answer_limits, method.text_limits(data.max_length)
    facts = {
        "encode_version": ENCODE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "template": None if template is None else [template.name, template.text, template.tool_use],
        "train_on": method.encoded_turns,
        "limits": None if limits is None else [limits.prompt, limits.completion],
        "holdout": data.holdout,
        "max_length": None if method.joins else data.max_length,
        "on_long": None if method.joins else data.on_long,
        "sources": [
            [split, token_keys(resolved.source), resolved.format, resolved.contents]
            for split, _, resolved in sources
            if split in splits
        ],
    }
    if data.min_length is not None:
        facts["min_length"] = data.min_length
    if data.deduplicate is not None:
        facts["deduplicate"] = data.deduplicate
    if data.decontaminate:
        facts["decontaminate"] = _contents(data.decontaminate)
    if template is not None and data.reasoning == "drop":
        facts["reasoning"] = "drop"
    if not method.joins and data.on_long in ("chunk", "retrieve"):
        settings = data.chunk or Chunk() if data.on_long == "chunk" else data.retrieve or Retrieve()
        # Without the embedder's path: its content is part of the scorer's identity below.
        facts[data.on_long] = settings.model_dump(exclude={"embedder", "query_instruction"})
    if limits is not None and data.holdout is not None:
        # Before this key existed, answers with the same prompt could be separated by the holdout.
        facts["held_out_by"] = "prompt"
    formats = {resolved.format for split, _, resolved in sources if split in splits}
    if registered := {name: code for name in formats if (code := code_of(name)) is not None}:
        facts["formats"] = registered
    if template is not None and template.date is not None:
        facts["date"] = template.date
    if scorer is not None:
        facts["scorer"] = scorer.identity
    if texts is not None:
        facts["texts"] = [texts.query, texts.passage, texts.negatives, *astuple(GRITLM)[:3]]
        if text_format != GRITLM:
            facts["text_format"] = asdict(text_format)
        if texts.scores:
            facts["scores"] = True
        if texts.pairs:
            facts["pairs"] = True
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _contents(benchmarks: Sequence[Benchmark]) -> list[list[Any]]:
    """Settings, files and file contents of the benchmarks."""
    found = []
    for at, benchmark in enumerate(benchmarks):
        parts = find_files(benchmark, f"data.decontaminate[{at}]")
        found.append([benchmark.model_dump(), [[part.label, content_of(part)] for part in parts]])
    return found
