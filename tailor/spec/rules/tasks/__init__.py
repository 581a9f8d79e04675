"""Rules between the keys of one evaluation task: one file per task that has any.

The task's spec class names the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.base import EvaluationTask


def findings(task: type[EvaluationTask], keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`, beyond the types of its fields."""
    yield from _of_task(task, "findings", keys, key)


def unused(task: type[EvaluationTask], keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that have no effect."""
    yield from _of_task(task, "unused", keys, key)


def _of_task(task: type[EvaluationTask], function: str, keys: Keys, key: str) -> Iterator[Finding]:
    if task.rules is not None:
        rules = getattr(import_module(task.rules), function, None)
        yield from rules(keys, key) if rules is not None else ()
