"""`--json`: what a command shows as JSON on stdout, and its schema. Texts for people then go to stderr.

A command declares the shape of its output as `OUTPUT`. `main` adds the option `--json` to it, and `args.json` is then the
`JsonStdout` to write to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import core_schema

from tailor.cli.main import INTERNAL_ERROR, INTERRUPTED, TERMINATED, internal_error
from tailor.errors import RecipeError, TailorError
from tailor.redaction import redacted, redacted_values

T = TypeVar("T")


class _AsItIs:
    """Annotation of a type: pydantic neither checks nor changes the value, and the schema is that of the type."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_plain_validator_function(
            lambda value: value,
            json_schema_input_schema=handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


Raw = Annotated[T, _AsItIs()]
"""A value that is written as it is. `T` is the schema of the keys that are always there."""


class Document(BaseModel):
    """JSON object that a command writes. It has no other keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FoundProblem(Document):
    """One mistake in a file. Lines and columns count from 1; line 0 means the whole file."""

    file: str
    line: int
    column: int
    key: str
    message: str


class Failure(Document):
    """Why a command failed."""

    message: str
    hint: str | None
    exit_code: int
    problems: list[FoundProblem]
    """The mistakes, if a file has some."""


class Written(Document):
    """A folder that the command wrote."""

    url: str


class Failed(Document):
    """Written instead of the output of a command that failed."""

    error: Failure


class End(Document):
    """The last event: how the command ended."""

    event: Literal["end"] = "end"
    time: float
    state: Literal["finished", "failed", "interrupted"]
    exit_code: int
    error: Failure | None


@dataclass(frozen=True)
class Output:
    """What a command writes with `--json`. shape: the type of the document, or of an event if `events`."""

    shape: Any
    events: bool = False

    def configure(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        """Add `--json`. words: the command's arguments; errors in them are JSON too."""
        what = "events as JSON lines" if self.events else "JSON"
        parser.add_argument(
            "--json", action="store_true", help=f"write {what} to stdout, and texts to stderr"
        )
        usage_error = parser.error

        def error(message: str) -> NoReturn:
            if "--json" in words:
                with self._reserved() as stdout:
                    stdout.end(2, Failure(message=message, hint=None, exit_code=2, problems=[]))
            usage_error(message)

        parser.error = error  # type: ignore[method-assign]

    def run(self, execute: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
        """Run a command with `args.json`, and write how it failed, if it did. Exceptions are raised again."""
        with self._reserved() as args.json:
            try:
                code = int(execute(args))
            except BaseException as error:
                failure = failure_of(error)
                args.json.end(failure.exit_code, failure)
                raise
            args.json.end(code)
        return code

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the document, or of one event."""
        shape = self.shape | End if self.events else self.shape | Failed
        return TypeAdapter(shape).json_schema()

    @contextmanager
    def _reserved(self) -> Iterator[JsonStdout]:
        """Keep stdout for JSON: what other code prints there, C libraries and child processes included, goes to stderr."""
        shown, sys.stdout = sys.stdout, sys.stderr
        shown.flush()
        own: int | None = None
        if _descriptor(shown) == 1:
            own = os.dup(1)
            os.dup2(2, 1)
        try:
            yield JsonStdout(shown if own is None else open(own, "w", closefd=False), events=self.events)  # noqa: SIM115
        finally:
            sys.stdout = shown
            if own is not None:
                os.dup2(own, 1)
                os.close(own)


class JsonStdout:
    """Writes a document or events to stdout. Any thread and signal handlers may call it."""

    def __init__(self, stream: Any, *, events: bool) -> None:
        self._stream, self._events = stream, events
        self._lock, self._writing = threading.RLock(), False
        self._waiting: deque[str] = deque()
        self._wrote = False

    def write(self, value: Document | dict[str, Any]) -> None:
        """Write one document or event. A reader of events that has left (`| head`) does not end the command."""
        from tailor.runs.log import finite

        values = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        if self._events:
            values = redacted_values(values)
        self._wrote = True
        text = json.dumps(finite(values), indent=None if self._events else 2, allow_nan=False, default=str)
        with self._lock:
            self._waiting.append(f"{text}\n")
            if self._writing:  # called by a signal handler, in the middle of a line
                return
            self._writing = True
            try:
                while self._waiting:
                    self._stream.write(self._waiting.popleft())
                self._stream.flush()
            except BrokenPipeError:
                if not self._events:
                    raise
                self._stream = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
            finally:
                self._writing = False

    def end(self, code: int, failure: Failure | None = None) -> None:
        """Write how the command ended: the last event, or the error if the command wrote no document."""
        stopped = code in (INTERRUPTED, TERMINATED)
        if failure is None and code:
            message = "interrupted" if stopped else "the command failed"
            failure = Failure(message=message, hint=None, exit_code=code, problems=[])
        if self._events:
            state: Any = "interrupted" if stopped else "failed" if code else "finished"
            self.write(End(time=time.time(), state=state, exit_code=code, error=failure))
        elif failure is not None and not self._wrote:
            self.write(Failed(error=failure))


def failure_of(error: BaseException) -> Failure:
    """An exception as a part of the output."""
    if isinstance(error, RecipeError):
        return Failure(
            message=error.message, hint=None, exit_code=error.exit_code, problems=found_problems(error)
        )
    if isinstance(error, TailorError):
        return Failure(message=error.message, hint=error.hint, exit_code=error.exit_code, problems=[])
    if isinstance(error, KeyboardInterrupt):
        return Failure(message="interrupted", hint=None, exit_code=INTERRUPTED, problems=[])
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 2
        return Failure(message=str(error.code), hint=None, exit_code=code, problems=[])
    return Failure(
        message=redacted(internal_error(error)),
        hint="run again with --debug for the traceback",
        exit_code=INTERNAL_ERROR,
        problems=[],
    )


def found_problems(error: RecipeError) -> list[FoundProblem]:
    return [FoundProblem(**asdict(problem)) for problem in error.problems]


def _descriptor(stream: Any) -> int | None:
    """The file descriptor behind a stream; None for one in memory."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
