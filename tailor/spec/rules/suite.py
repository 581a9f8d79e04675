"""Rules between the keys of an evaluation, in a file of its own or in `evaluate.final` of a recipe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from tailor.errors import DataError, Problem
from tailor.spec.bounds import FORMS, parse
from tailor.spec.data import Retrieve
from tailor.spec.reading.source import Document
from tailor.spec.rules import tasks as task_rules
from tailor.spec.rules.keys import Finding, Keys, path_of
from tailor.spec.suite import Rows, Suite, pass_counts
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.registry import EVALUATION_TASKS, task_class

FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
NO_QUESTION = "plain text has no question for which passages could be retrieved; use chunk"
Conflicting = tuple[str, int | None] | None
"""A key and its value."""
_DEFAULT_TASKS = [task.name for task in Suite().tasks]


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every broken rule of an evaluation file. wrong: the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    return [
        document.at_key(path_of(key)).problem(path_of(key), message) for key, message in findings(keys, "")
    ]


def findings(keys: Keys, prefix: str, inherited: Conflicting = None) -> Iterator[Finding]:
    """Problems of the evaluation. prefix: of its keys, with the dot; empty for a file of its own.

    inherited: the key and the value of the longest example where the evaluation has none of its own; None if unknown.
    """
    for rules in (_tasks, _bounds, unused, _names):
        yield from rules(keys, prefix)
    yield from without_questions(keys, f"{prefix}data.")
    own = f"{prefix}data.max_length"
    key, length = inherited if inherited is not None and not keys.given(own) else (own, keys(own))
    for found, other, why in long_rows(keys, f"{prefix}data.", length, key):
        yield found, f"conflicts with {other}: {why}"


def check_rows(rows: Rows, length: int) -> None:
    """The rules that need the longest example, once it is known. DataError for the first one that is broken."""
    keys = Keys({"data": rows.model_dump()}, set())
    for key, _, why in long_rows(keys, "data.", length, "max_length"):
        raise DataError(f"{key}: {why}", hint="the longest example is that of the run: set data.max_length")


def task_names(keys: Keys, prefix: str) -> list[str] | None:
    """Names of the tasks. None if one of them is wrong."""
    tasks = keys(f"{prefix}tasks")
    if keys.is_wrong(f"{prefix}tasks"):
        return None
    if not isinstance(tasks, list):
        return list(_DEFAULT_TASKS)
    names = [task.get("name") if isinstance(task, dict) else None for task in tasks]
    wrong = any(keys.is_wrong(f"{prefix}tasks.{at}.name") for at in range(len(tasks)))
    return None if wrong or None in names else [str(name) for name in names]


def _tasks(keys: Keys, prefix: str) -> Iterator[Finding]:
    seen: list[str] = []
    for at, name in enumerate(task_names(keys, prefix) or ()):
        if name in seen:
            yield (
                f"{prefix}tasks.{at}.name",
                f"{name} is listed twice, and both would report the same metrics; remove one",
            )
        seen.append(name)
        task = task_class(name)
        if task.needs_comparison and keys(f"{prefix}compare") in ("none", []):
            yield (
                f"{prefix}tasks.{at}.name",
                f"{name} needs a model to compare with; add one to {prefix}compare",
            )
        yield from task_rules.findings(task, keys, f"{prefix}tasks.{at}")
        columns = keys(f"{prefix}tasks.{at}.data.columns")
        for field in columns if isinstance(columns, dict) else ():
            if task.fields is not None and field not in task.fields:
                yield (
                    f"{prefix}tasks.{at}.data.columns.{field}",
                    f"{name} has no field {field}; its fields are {', '.join(task.fields)}",
                )


def _bounds(keys: Keys, prefix: str) -> Iterator[Finding]:
    bounds, names = keys(f"{prefix}fail_if"), task_names(keys, prefix)
    if not isinstance(bounds, dict) or names is None:
        return
    tasks = keys(f"{prefix}tasks")
    tasks = tasks if isinstance(tasks, list) else [{"name": name} for name in names]
    pairs = [(task_class(name), task) for name, task in zip(names, tasks, strict=True)]
    metrics = list(dict.fromkeys(metric for own, task in pairs for metric in own.metrics(task)))
    samples = keys(f"{prefix}decoding.samples") or 1
    metrics += [
        f"{metric}/pass@{k}" for own, _ in pairs for metric in own.binary for k in pass_counts(samples)
    ]
    groups = list(dict.fromkeys(group for own, task in pairs for group in own.metric_groups(task)))
    for metric, bound in bounds.items():
        key = f"{prefix}fail_if.{metric}"
        if metric not in metrics and metric.split("/")[0] not in groups:
            owner = next(
                (name for name in EVALUATION_TASKS.names() if metric in task_class(name).figures), None
            )
            near = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.7)
            if owner is not None:
                yield key, f"none of the tasks reports it; add {{name: {owner}}} to tasks"
            elif near:
                yield key, f"unknown metric; did you mean {near[0]}?"
            else:
                reported = [*metrics, *(f"{name}/METRIC" for name in groups)]
                yield key, f"unknown metric; the tasks report {', '.join(reported)}"
        elif isinstance(bound, str) and not keys.is_wrong(key):
            yield from _bound(keys, prefix, key, bound)


def _bound(keys: Keys, prefix: str, key: str, text: str) -> Iterator[Finding]:
    """What is wrong with one condition of `fail_if`."""
    bound = parse(text)
    if bound is None:
        yield key, f"{text} is not a condition; {FORMS}"
    elif bound.model is not None and not keys.is_wrong(f"{prefix}compare"):
        compare = keys(f"{prefix}compare")
        # auto compares an adapter with its base, which is known when the model is.
        names = compare if isinstance(compare, list) else [] if compare == "none" else ["base"]
        if bound.model not in names:
            near = difflib.get_close_matches(bound.model, [str(name) for name in names], n=1, cutoff=0.7)
            fix = (
                f"did you mean {near[0]}?"
                if near
                else f"add it to {prefix}compare; a margin has spaces around its sign"
            )
            yield key, f"{bound.model} is not among the compared models; {fix}"


def unused(keys: Keys, prefix: str) -> Iterator[Finding]:
    """Keys that would be ignored."""
    names = task_names(keys, prefix)
    if names is None:
        return
    tasks = [task_class(name) for name in names]
    if not any(task.on_rows for task in tasks):
        for key in ("data", "limit", "by"):
            if keys(f"{prefix}{key}") is not None:
                yield (
                    f"{prefix}{key}",
                    f"has no effect: the tasks ({', '.join(names)}) have their own rows",
                )
    if not any(task.generates for task in tasks):
        for key in ("max_new_tokens", "temperature", "top_p", "seed", "samples"):
            if keys(f"{prefix}decoding.{key}") is not None:
                yield (
                    f"{prefix}decoding.{key}",
                    f"has no effect: the tasks ({', '.join(names)}) generate no answers"
                    + (", or greedy answers of fixed length" if any(task.greedy for task in tasks) else ""),
                )
    elif keys(f"{prefix}decoding.temperature") in (None, 0) and not keys.is_wrong(
        f"{prefix}decoding.temperature"
    ):
        for key in ("top_p", "seed", "samples"):
            if keys(f"{prefix}decoding.{key}") is not None:
                yield f"{prefix}decoding.{key}", "has no effect without a decoding.temperature above 0"
    yield from unused_long_rows(keys, f"{prefix}data.")
    if all(task.embeds for task in tasks) and keys(f"{prefix}decoding.batch_size") is not None:
        yield (
            f"{prefix}decoding.batch_size",
            "has no effect: the batches of texts to embed are chosen by their number of tokens",
        )
    for at, task in enumerate(tasks):
        yield from task_rules.unused(task, keys, f"{prefix}tasks.{at}")
    for key, source in keys.sources(f"{prefix}data.evaluation"):
        if source.get("weight") is not None:
            yield f"{key}.weight", "has no effect: every evaluation row is used once; remove it"
        if source.get("samples") is not None:
            yield (
                f"{key}.samples",
                "has no effect: every evaluation row is used once; remove it, or set limit",
            )
        for name in ("dataset_column", "query_instruction", "passage_instruction"):
            if source.get(name) is not None:
                yield f"{key}.{name}", "has no effect in an evaluation; remove it"
    for key, path in paths(keys, prefix):
        if "://" in path and not path.startswith("hf://"):
            for name in ("subset", "split"):
                if keys(f"{key.removesuffix('.path')}.{name}") is not None:
                    yield (
                        f"{key.removesuffix('.path')}.{name}",
                        "has no effect: it is for Hugging Face datasets (hf://…)",
                    )


def long_rows(keys: Keys, prefix: str, length: int | None, length_key: str) -> Iterator[tuple[str, str, str]]:
    """Conflicts of `chunk` and `retrieve` with the longest example.

    prefix: of the data section, with the dot. length: the longest example, in tokens. length_key: the key that says it.
    """
    if length is None or keys.is_wrong(length_key):
        return
    for key, why in (
        ("chunk.overlap", "leave no new tokens in a chunk"),
        ("chunk.min_length", "are more than the longest chunk"),
    ):
        tokens = keys(f"{prefix}{key}")
        if tokens and tokens >= length + (key == "chunk.min_length"):
            yield (
                f"{prefix}{key}",
                length_key,
                f"{tokens} tokens {why} of {length}; lower {prefix}{key}",
            )
    passage, question = (
        keys(f"{prefix}retrieve.{name}") or Retrieve.model_fields[name].default
        for name in ("passage", "question")
    )
    if keys(f"{prefix}on_long") == "retrieve" and 2 * passage + question >= length:
        yield (
            f"{prefix}on_long",
            length_key,
            f"two passages of {passage} tokens and a question of {question} leave no room for an answer in {length} tokens; raise {length_key}",
        )


def without_questions(keys: Keys, prefix: str) -> Iterator[Finding]:
    """`on_long: retrieve` where every source is plain text. prefix: of the data section, with the dot."""
    sources = [source for split in ("train", "evaluation") for _, source in keys.sources(f"{prefix}{split}")]
    if (
        keys(f"{prefix}on_long") == "retrieve"
        and sources
        and all(one.get("format") == "text" for one in sources)
    ):
        yield f"{prefix}on_long", NO_QUESTION


def unused_long_rows(keys: Keys, prefix: str) -> Iterator[Finding]:
    """Settings of a value of `on_long` that is not chosen."""
    for value in ("chunk", "retrieve"):
        not_chosen = keys(f"{prefix}on_long") != value and not keys.is_wrong(f"{prefix}on_long")
        if not_chosen and keys(f"{prefix}{value}") is not None:
            yield f"{prefix}{value}", f"has no effect without {prefix}on_long: {value}"
    instruction = f"{prefix}retrieve.query_instruction"
    if keys(instruction) is not None and keys.absent(f"{prefix}retrieve.embedder"):
        yield instruction, f"has no effect without {prefix}retrieve.embedder: BM25 uses no instruction"


def _names(keys: Keys, prefix: str) -> Iterator[Finding]:
    name = keys(f"{prefix}name")
    if isinstance(name, str) and not FOLDER_NAME.fullmatch(name):
        yield f"{prefix}name", f"{name} is not a valid folder name; use letters, digits, -, _ and ."
    others: Any = keys(f"{prefix}compare")
    for other in (
        sorted({other for other in others if others.count(other) > 1}) if isinstance(others, list) else ()
    ):
        yield f"{prefix}compare", f"has {other} twice; remove one"


def paths(keys: Keys, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, path) of every source of rows, including those of tasks."""
    for key, _ in keys.sources(f"{prefix}data.evaluation"):
        if isinstance(path := keys(f"{key}.path"), str):
            yield f"{key}.path", path
    for key, task in named_tasks(keys, prefix):
        for source in task.sources:
            if isinstance(path := keys(f"{key}.{source}.path"), str):
                yield f"{key}.{source}.path", path


def folders(keys: Keys, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """(key, value, what reads the folder) of every local folder that a task names."""
    for key, task in named_tasks(keys, prefix):
        for name, reader in task.folders.items():
            yield f"{key}.{name}", keys(f"{key}.{name}"), reader


def code(keys: Keys, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, file) of every local file with a function that a task names."""
    for key, task in named_tasks(keys, prefix):
        for name in task.code:
            if isinstance(function := keys(f"{key}.{name}"), str):
                yield f"{key}.{name}", function.rpartition(":")[0]


def named_tasks(keys: Keys, prefix: str) -> Iterator[tuple[str, type[EvaluationTask]]]:
    """The key and the spec class of each task in the file. A task with a wrong name gets the base class."""
    tasks = keys(f"{prefix}tasks")
    for at in range(len(tasks) if isinstance(tasks, list) else 0):
        name = keys(f"{prefix}tasks.{at}.name")
        known = isinstance(name, str) and name in EVALUATION_TASKS
        yield f"{prefix}tasks.{at}", task_class(name) if known else EvaluationTask
