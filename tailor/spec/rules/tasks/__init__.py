"""Rules between the keys of one evaluation task: a file per task that has any, named by its spec class."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.base import EvaluationTask


def findings(task: type[EvaluationTask], keys: Keys, key: str) -> Iterator[Finding]:
    """What is wrong with the task at `key`, beyond what its fields' types say."""
    yield from _of_task(task, "findings", keys, key)


def unused(task: type[EvaluationTask], keys: Keys, key: str) -> Iterator[Finding]:
    """Its keys that have no effect beside the others."""
    yield from _of_task(task, "unused", keys, key)


def _of_task(task: type[EvaluationTask], function: str, keys: Keys, key: str) -> Iterator[Finding]:
    if task.rules is not None:
        rules = getattr(import_module(task.rules), function, None)
        yield from rules(keys, key) if rules is not None else ()
