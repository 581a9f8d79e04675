"""The rules between the keys of an evaluation, in its own file or in a recipe's `evaluate.final`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from tailor.errors import Problem
from tailor.spec.data import Retrieve
from tailor.spec.long import GRIDS
from tailor.spec.reading.source import Document
from tailor.spec.rules.keys import Finding, Keys, path_of
from tailor.spec.suite import GENERATED, METRICS, ON_ROWS, Suite
from tailor.spec.suite import metrics as given_by

BOUND = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
"""A comparison and a number."""
ROWS = re.compile(r"\.(jsonl|ndjson|json|parquet|csv|tsv)(\.(gz|bz2|xz))?$", re.IGNORECASE)
"""Ends the name of a file of rows."""
FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
FIELDS = {
    "multiple_choice": ("question", "choices", "answer"),
    "facts": ("question", "facts"),
    "long_perplexity": ("text",),
    "needle": ("text",),
}
"""Task with rows of its own -> what it reads of a row."""
_DEFAULT_TASKS = [task.name for task in Suite().tasks]


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every broken rule of an evaluation file. `wrong` are the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    return [
        document.at_key(path_of(key)).problem(path_of(key), message) for key, message in findings(keys, "")
    ]


def findings(keys: Keys, prefix: str) -> Iterator[Finding]:
    """What is wrong with the evaluation below `prefix` (with its dot, or empty for a file of its own)."""
    for rules in (_tasks, _bounds, unused, _names):
        yield from rules(keys, prefix)
    for key, other, why in long_rows(keys, f"{prefix}data.", keys(f"{prefix}data.max_length")):
        yield key, f"conflicts with {other}: {why}"


def task_names(keys: Keys, prefix: str) -> list[str] | None:
    """The names of the tasks; None when one of them is wrong."""
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
            yield f"{prefix}tasks.{at}.name", f"{name} is there twice; its figures would have one name"
        seen.append(name)
        yield from _of_lm_eval(keys, f"{prefix}tasks.{at}") if name == "lm_eval" else ()
        yield from _long_task(keys, f"{prefix}tasks.{at}", name)
        columns = keys(f"{prefix}tasks.{at}.data.columns")
        for field in columns if isinstance(columns, dict) else ():
            if name in FIELDS and field not in FIELDS[name]:
                yield (
                    f"{prefix}tasks.{at}.data.columns.{field}",
                    f"{name} has no field {field}; its fields are {', '.join(FIELDS[name])}",
                )


def _of_lm_eval(keys: Keys, key: str) -> Iterator[Finding]:
    seen: list[object] = []
    names = keys(f"{key}.tasks")
    for at, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml"))):
            yield f"{key}.tasks.{at}", f"{name} is a path; name the task, and its folder in include"
        elif name in seen:
            yield f"{key}.tasks.{at}", f"{name} is there twice"
        seen.append(name)


def _lm_eval_tasks(keys: Keys, prefix: str) -> list[str]:
    """The tasks and groups of lm-eval that are named."""
    tasks = keys(f"{prefix}tasks")
    found = [keys(f"{prefix}tasks.{at}.tasks") for at in range(len(tasks) if isinstance(tasks, list) else 0)]
    named = (str(name) for names in found if isinstance(names, list) for name in names)
    return list(dict.fromkeys(name for name in named if "/" not in name))


def _bounds(keys: Keys, prefix: str) -> Iterator[Finding]:
    bounds, names = keys(f"{prefix}fail_if"), task_names(keys, prefix)
    if not isinstance(bounds, dict) or names is None:
        return
    tasks = keys(f"{prefix}tasks")
    tasks = tasks if isinstance(tasks, list) else [{"name": name} for name in names]
    metrics = list(dict.fromkeys(metric for task in tasks for metric in given_by(task)))
    harness = _lm_eval_tasks(keys, prefix) if "lm_eval" in names else []
    for metric, bound in bounds.items():
        key = f"{prefix}fail_if.{metric}"
        if metric not in metrics and metric.split("/")[0] not in harness:
            owner = next((name for name, given in METRICS.items() if metric in given), None)
            near = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.7)
            if owner is not None:
                yield key, f"none of the tasks gives it; add {{name: {owner}}} to tasks"
            elif near:
                yield key, f"no such figure; did you mean {near[0]}?"
            else:
                given = [*metrics, *(f"{name}/METRIC" for name in harness)]
                yield key, f"no such figure; the tasks give {', '.join(given)}"
        elif isinstance(bound, str) and not keys.is_wrong(key) and not BOUND.fullmatch(bound):
            yield key, f'{bound} is no bound; write a comparison and a number, such as "< 0.3"'


def unused(keys: Keys, prefix: str) -> Iterator[Finding]:
    """Keys that would be ignored."""
    names = task_names(keys, prefix)
    if names is None:
        return
    on_rows = any(name in ON_ROWS for name in names)
    if not on_rows:
        for key in ("data", "limit"):
            if keys(f"{prefix}{key}") is not None:
                yield (
                    f"{prefix}{key}",
                    f"has no effect: the tasks ({', '.join(names)}) bring rows of their own",
                )
    if not any(name in GENERATED for name in names):
        for key in ("max_new_tokens", "temperature", "top_p", "seed"):
            if keys(f"{prefix}decoding.{key}") is not None:
                yield (
                    f"{prefix}decoding.{key}",
                    f"has no effect: the tasks ({', '.join(names)}) generate no answers"
                    + (", or greedy ones of their own length" if set(names) & set(GRIDS) else ""),
                )
    elif keys(f"{prefix}decoding.temperature") in (None, 0) and not keys.is_wrong(
        f"{prefix}decoding.temperature"
    ):
        for key in ("top_p", "seed"):
            if keys(f"{prefix}decoding.{key}") is not None:
                yield f"{prefix}decoding.{key}", "has no effect without a decoding.temperature over 0"
    yield from unused_long_rows(keys, f"{prefix}data.")
    if all(name == "retrieval" for name in names) and keys(f"{prefix}decoding.batch_size") is not None:
        yield (
            f"{prefix}decoding.batch_size",
            "has no effect: texts to embed go through the model by their tokens",
        )
    for at, name in enumerate(names):
        if name == "retrieval":
            yield from unused_of_corpus(keys, f"{prefix}tasks.{at}.data")
    for key, source in keys.sources(f"{prefix}data.evaluation"):
        if source.get("weight") is not None:
            yield f"{key}.weight", "has no effect: every evaluation row counts once"
    for key, path in paths(keys, prefix):
        if "://" in path and not path.startswith("hf://"):
            for name in ("subset", "split"):
                if keys(f"{key.removesuffix('.path')}.{name}") is not None:
                    yield (
                        f"{key.removesuffix('.path')}.{name}",
                        "has no effect: it is for Hugging Face datasets (hf://…)",
                    )


def long_rows(keys: Keys, prefix: str, length: int | None) -> Iterator[tuple[str, str, str]]:
    """Conflicts of what `chunk` and `retrieve` say with the longest example, `length` tokens, of the rows at `prefix`."""
    if length is None or keys.is_wrong(f"{prefix}max_length"):
        return
    for key, what in (
        ("chunk.overlap", "a chunk must have new tokens"),
        ("chunk.min_length", "no chunk is so long"),
    ):
        tokens = keys(f"{prefix}{key}")
        if tokens and tokens >= length + (key == "chunk.min_length"):
            yield f"{prefix}{key}", f"{prefix}max_length", f"{tokens} tokens of {length}: {what}"
    passage, question = (
        keys(f"{prefix}retrieve.{name}") or Retrieve.model_fields[name].default
        for name in ("passage", "question")
    )
    if keys(f"{prefix}on_long") == "retrieve" and 2 * passage + question >= length:
        yield (
            f"{prefix}on_long",
            f"{prefix}max_length",
            f"two passages of {passage} tokens and a question of {question} leave no room for an answer in {length}",
        )


def unused_long_rows(keys: Keys, prefix: str) -> Iterator[Finding]:
    """Settings for a way with long rows that is not taken."""
    for way in ("chunk", "retrieve"):
        other = keys(f"{prefix}on_long") != way and not keys.is_wrong(f"{prefix}on_long")
        if other and keys(f"{prefix}{way}") is not None:
            yield f"{prefix}{way}", f"has no effect without {prefix}on_long: {way}"
    asked = f"{prefix}retrieve.query_instruction"
    if keys(asked) is not None and keys.absent(f"{prefix}retrieve.embedder"):
        yield asked, f"has no effect without {prefix}retrieve.embedder: BM25 takes the question's words"


def unused_of_corpus(keys: Keys, key: str) -> Iterator[Finding]:
    """What a file of rows to search has no use for."""
    path = keys(f"{key}.path")
    if isinstance(path, str) and ROWS.search(path):
        for name in ("qrels", "ignore_identical_ids"):
            if keys(f"{key}.{name}") is not None:
                yield (
                    f"{key}.{name}",
                    f"has no effect: {path} is a file of rows; it is for a folder in BEIR's layout",
                )


def _names(keys: Keys, prefix: str) -> Iterator[Finding]:
    name = keys(f"{prefix}name")
    if isinstance(name, str) and not FOLDER_NAME.fullmatch(name):
        yield f"{prefix}name", f"{name} is no name of a folder; use letters, digits, -, _ and ."
    others: Any = keys(f"{prefix}compare")
    for other in (
        sorted({other for other in others if others.count(other) > 1}) if isinstance(others, list) else ()
    ):
        yield f"{prefix}compare", f"names {other} twice"


def paths(keys: Keys, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, path) of every source of rows."""
    for key, _ in keys.sources(f"{prefix}data.evaluation"):
        if isinstance(path := keys(f"{key}.path"), str):
            yield f"{key}.path", path
    tasks = keys(f"{prefix}tasks")
    for at in range(len(tasks) if isinstance(tasks, list) else 0):
        key = f"{prefix}tasks.{at}.data.path"
        if isinstance(path := keys(key), str):
            yield key, path


SHORTEST = 8


"""Tokens."""


def _long_task(keys: Keys, key: str, name: str) -> Iterator[Finding]:
    """What is wrong with the task `name` at `key`."""
    if name not in (*GRIDS, "long_perplexity"):
        return
    lengths, depths = keys(f"{key}.lengths"), keys(f"{key}.depths")
    lengths = lengths if isinstance(lengths, list) else []
    depths = depths if isinstance(depths, list) else []
    for what, values in (("lengths", lengths), ("depths", depths)):
        for value in sorted({value for value in values if values.count(value) > 1}):
            yield f"{key}.{what}", f"names {value:g} twice"
    if short := [length for length in lengths if length < SHORTEST]:
        yield f"{key}.lengths", f"{short[0]} tokens are no text; give at least {SHORTEST}"
    if odd := [depth for depth in depths if not 0 <= depth <= 1]:
        yield f"{key}.depths", f"{odd[0]:g} is no share of a text; write a number from 0 to 1"
    stride = keys(f"{key}.stride")
    if stride and lengths and stride >= min(lengths):
        yield f"{key}.stride", f"{stride} new tokens leave a window of {min(lengths)} no tokens before them"
    needle = keys(f"{key}.needle")
    if isinstance(needle, str) and "{value}" not in needle:
        yield f"{key}.needle", "hides nothing: write {value} where the value stands"
