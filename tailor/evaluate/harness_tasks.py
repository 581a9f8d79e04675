"""Finds and loads tasks of lm-eval (EleutherAI's evaluation harness), with the data that some of them make themselves."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tailor.encode.tokenizer import Tokenizer
from tailor.encode.tokenizer_files import PLAIN
from tailor.errors import DataError, TailorError
from tailor.layout import TOKENIZER, TOKENIZER_CONFIG
from tailor.spec.tasks.lm_eval import LmEval

DATA_SEEDS = (0, 1234)
"""lm-eval's default seeds of `random` and numpy, from which tasks that make their own data draw it."""


def require_lm_eval() -> Any:
    """The package lm_eval. TailorError when it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise TailorError(
            "the task lm_eval needs the package lm-eval, which is not installed",
            hint="pip install 'tailor[lm-eval]', or remove the task lm_eval",
        ) from None
    return lm_eval


@contextmanager
def saved(tokenizer: Tokenizer) -> Iterator[str]:
    """A temporary folder with a tokenizer, for tasks that make data. lm-eval would run the code of a model's own folder."""
    config = {key: value for key, value in tokenizer.config.items() if key != "auto_map"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, TOKENIZER).write_text(tokenizer.content, encoding="utf-8")
        Path(folder, TOKENIZER_CONFIG).write_text(json.dumps({**config, "tokenizer_class": PLAIN}))
        yield folder


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw from `random` and numpy as lm-eval does, so that every model and run gets the same data; restore both."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(DATA_SEEDS[0])
    np.random.seed(DATA_SEEDS[1])
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def index(task: LmEval, name: str, metadata: str = "{}") -> Any:
    """The index of tasks with the named one. DataError when it is unknown, or a tag. metadata: as JSON."""
    require_lm_eval()
    with _quiet():
        files = fingerprint(task.include)
        manager = _manager(task.include, files, metadata, defaults=False)
        if name not in manager.all_tasks:
            manager = _manager(task.include, files, metadata, defaults=True)
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        raise DataError(
            f"lm_eval: unknown task {name}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "list the tasks with `lm-eval ls tasks`; include adds a folder of your own tasks",
        )
    entry = manager.task_index[name]
    config = entry.cfg or {}
    is_group = name in manager.all_groups
    if name in manager.all_tags or (is_group and not config.get("aggregate_metric_list")):
        members = sorted(entry.tags) or _members(config)
        raise DataError(
            f"lm_eval: {name} is a {'group' if is_group else 'tag'} of tasks, which has no metrics of its own",
            hint=f"name its tasks: {', '.join(members[:5])}{' …' if len(members) > 5 else ''}",
        )
    return manager


def configs(manager: Any, name: str) -> Iterator[tuple[Path | None, Mapping[str, Any]]]:
    """(file, plain configuration) of a task, or of all tasks of a group."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    members = sorted(entry.tags) or _members(config)
    if members and name not in manager.all_subtasks:
        for member in members:
            yield from configs(manager, member)
    else:
        yield entry.yaml_path, config


def _members(config: Mapping[str, Any]) -> list[str]:
    """The tasks and groups of a group's configuration."""
    members = config.get("task")
    if not isinstance(members, list):
        return []
    return [str(own if isinstance(own, str) else own.get("group") or own.get("task")) for own in members]


def makes_data(config: Any) -> bool:
    """Whether a task makes its own data by a function, for which it may need the tokenizer."""
    own = config.get("custom_dataset") if isinstance(config, Mapping) else None
    return (own or getattr(config, "custom_dataset", None)) is not None


def import_functions(name: str, files: Sequence[Path]) -> None:
    """Import the functions that definitions of tasks name, so that a missing package is reported early. DataError."""
    from lm_eval.tasks._yaml_loader import load_yaml

    with _named(name):
        for file in files:
            load_yaml(file, resolve_func=True, recursive=True)


def load(task: LmEval, name: str, tokenizer: str | None = None) -> Any:
    """The task, or the tasks of the group, with their data. DataError when it is unknown or cannot be loaded.

    tokenizer: folder of the model's tokenizer.
    """
    metadata = {**task.metadata, **({"tokenizer": tokenizer} if tokenizer else {})}
    manager = index(task, name)
    if any(makes_data(config) for _, config in configs(manager, name)) or task.metadata:
        manager = index(task, name, json.dumps(metadata, sort_keys=True))
    with _named(name), _seeded():
        return manager.load([name])


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Report an error in the definition of a task, which may run any code, and download its data."""
    try:
        with _quiet():
            yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"lm_eval: the task {name} cannot be loaded: {reason[:300]}",
            hint="check its definition, and that this machine can download its data",
        ) from error


@lru_cache(maxsize=4)
def _manager(include: str | None, files: str | None, metadata: str, *, defaults: bool) -> Any:
    """lm-eval's task index. Cached, since indexing its built-in tasks takes seconds. files: hash of the files in `include`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=defaults, metadata=json.loads(metadata))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval, which logs many warnings about its own task definitions."""
    import logging

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def fingerprint(include: str | None) -> str | None:
    """A hash of the files in a folder of task definitions."""
    if include is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(
        path for path in Path(include).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(f"{path.relative_to(include)}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
