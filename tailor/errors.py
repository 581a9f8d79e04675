"""Errors that users see, and the exit code of each.

    TailorError            exit code 1
    ├── RecipeError        2   the recipe is wrong; lists every problem at once
    ├── DataError          2   rows cannot be read, or more rows are lost than `data.budget` allows
    ├── TemplateError      2   a chat template cannot be used for training
    ├── ModelError         2   a model cannot be found, loaded or trained as the recipe says
    ├── ScaleError         2   the machine or cluster lacks the requested workers or GPUs
    ├── StoreError         2   a path cannot be read or written
    ├── ExtensionError     2   code that another package registers cannot be loaded
    ├── GateError          3   a metric of an evaluation meets a condition of `fail_if`
    └── TrainingError      1   training started and then failed
        └── WorkerError    1   a worker died or raised; a retry from the last checkpoint may succeed

A message says what is wrong and where; `hint` says what to do. The command line
prints both without a traceback; `tailor --debug` also prints the traceback.
Bugs in tailor itself raise `AssertionError` or other plain exceptions, never a TailorError.

Messages and hints never contain secrets: `***` replaces them when the error is made, because errors are printed, logged
and stored in `status.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tailor.printable import printable
from tailor.redaction import redacted

MAX_PROBLEMS = 50
"""Problems of one error report. The others are counted."""
_MAX_KEY = 100
_MAX_MESSAGE = 2000
_LONG_WORD = re.compile(r"(\S{200})\S{100,}")


class TailorError(Exception):
    """Base class of errors that the user can fix. `hint` says how, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message, hint = redacted(message), hint and redacted(hint)
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles the errors of workers; without this the hint would be lost.
        return (_rebuild, (type(self), self.message, self.hint))

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def _rebuild(kind: type[TailorError], message: str, hint: str | None) -> TailorError:
    return kind(message, hint=hint)


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a recipe, shown as `file:line:column: key: message`.

    Lines and columns count from 1. Line 0 means the whole file.
    """

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        position = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{position}: {self.key}: {self.message}" if self.key else f"{position}: {self.message}"


class RecipeError(TailorError):
    """A recipe has one or more problems.

    `problems` has the first MAX_PROBLEMS of them by their position in the file, each in one printable line without
    secrets; `omitted` is the number of the others.
    """

    exit_code = 2

    def __init__(self, problems: list[Problem], omitted: int = 0) -> None:
        self.problems = [_shown(problem) for problem in sorted(problems)[:MAX_PROBLEMS]]
        self.omitted = omitted + len(problems) - len(self.problems)
        lines = [str(problem) for problem in self.problems]
        if self.omitted:
            lines.append(f"{self.problems[-1].file}: {self.omitted:,} more problems are not shown")
        super().__init__("")
        self.message = "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (RecipeError, (self.problems, self.omitted))


def _shown(problem: Problem) -> Problem:
    """The problem as text for the user: no secrets, no control characters, no endless words."""
    key = printable(redacted(problem.key))
    message = _LONG_WORD.sub(r"\1…", printable(redacted(problem.message)))
    return replace(
        problem,
        file=printable(redacted(problem.file)),
        key=key if len(key) <= _MAX_KEY else f"{key[: _MAX_KEY - 1]}…",
        message=message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 1]}…",
    )


class DataError(TailorError):
    """The rows cannot be read, or too many are lost."""

    exit_code = 2


class TemplateError(TailorError):
    """The chat template cannot be used for training."""

    exit_code = 2


class ModelError(TailorError):
    """The model cannot be found, loaded or trained."""

    exit_code = 2


class ScaleError(TailorError):
    """The machine or cluster lacks workers or GPUs."""

    exit_code = 2


class StoreError(TailorError):
    """A path cannot be read or written."""

    exit_code = 2


class ExtensionError(TailorError):
    """The code of another package cannot be loaded."""

    exit_code = 2


class GateError(TailorError):
    """A condition of `fail_if` is met."""

    exit_code = 3


class TrainingError(TailorError):
    """Training started and then failed."""

    exit_code = 1


class WorkerError(TrainingError):
    """A worker died or raised an exception."""

    exit_code = 1
