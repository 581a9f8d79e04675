"""Every error that a user can meet.

    TailorError            exit code 1
    ├── RecipeError        2   the recipe is wrong; carries every problem at once
    ├── DataError          2   rows that cannot be read, or a budget exceeded
    ├── TemplateError      2   a chat template that cannot be trained on
    ├── ModelError         2   a model that cannot be found, loaded or trained as asked
    ├── ScaleError         2   workers or GPUs that the machine or cluster does not have
    ├── StoreError         2   a path that cannot be read or written
    ├── ExtensionError     2   code that another package registers and that cannot be loaded
    ├── GateError          3   an evaluation's figure passes a bound of `fail_if`
    └── TrainingError      1   training started and could not go on
        └── WorkerError    1   a worker died or raised; another try from the last checkpoint may go well

A message says what is wrong, where, and the hint. The command line prints it
without a traceback; `tailor --debug` shows the traceback too. Programming
mistakes are `assert`s and plain exceptions, never a TailorError.
"""

from __future__ import annotations

from dataclasses import dataclass


class TailorError(Exception):
    """An error that the user can fix. `hint` says how, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Ray workers), so they must unpickle with their hint.
        return (_rebuild, (type(self), self.message, self.hint))

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def _rebuild(kind: type[TailorError], message: str, hint: str | None) -> TailorError:
    return kind(message, hint=hint)


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a recipe: `file:line:column: key: message`. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class RecipeError(TailorError):
    """A recipe with one or more problems, in the order in which they stand in the file."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (RecipeError, (self.problems,))


class DataError(TailorError):
    exit_code = 2


class TemplateError(TailorError):
    exit_code = 2


class ModelError(TailorError):
    exit_code = 2


class ScaleError(TailorError):
    exit_code = 2


class StoreError(TailorError):
    exit_code = 2


class ExtensionError(TailorError):
    exit_code = 2


class GateError(TailorError):
    exit_code = 3


class TrainingError(TailorError):
    exit_code = 1


class WorkerError(TrainingError):
    exit_code = 1
