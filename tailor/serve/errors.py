"""Errors of requests, in the form of OpenAI's interface."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from tailor.errors import TailorError
from tailor.printable import printable
from tailor.redaction import redacted


class ApiError(Exception):
    """A request that gets no answer. status: of HTTP. param: the field of the request that is wrong. code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        # Field and model names of the request come back in both texts; a lone surrogate in one could not be sent.
        self.status, self.message = status, printable(redacted(message), lines=True)
        self.type, self.param, self.code = type, param and printable(param), code

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles the errors of replicas.
        return _rebuilt, (self.status, self.message, self.type, self.param, self.code)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _rebuilt(status: int, message: str, type: str, param: str | None, code: str | None) -> ApiError:
    return ApiError(status, message, type=type, param=param, code=code)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def of_tailor(error: TailorError, param: str) -> ApiError:
    """The answer to a request whose content cannot be used, such as a conversation that the chat template rejects."""
    return bad_request(f"{error.message}; {error.hint}" if error.hint else error.message, param)


def unknown_model(name: str, known: list[str]) -> ApiError:
    return ApiError(
        404,
        f"the model {name!r} is not served; served are {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def overloaded(waiting: int) -> ApiError:
    return ApiError(
        503,
        f"the server is busy: {waiting} requests are waiting; try again later",
        type="server_error",
        code="overloaded",
    )


def draining() -> ApiError:
    return ApiError(503, "the server is shutting down", type="server_error", code="shutting_down")


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        504, f"the answer was not finished within {seconds:g} s", type="server_error", code="timeout"
    )


def failed(what: str) -> ApiError:
    """An error of the server itself. what: without details of the machine."""
    return ApiError(500, what, type="server_error", code="internal_error")


_CALLS = 4
"""Number of calls that the line of an unexpected error names."""


def unexpected(what: str, error: BaseException) -> ApiError:
    """The answer to a request that ended with an error of the server itself, of which a line on stderr says where.

    The line has the innermost calls, but not the error's message, which may quote the request.
    """
    calls = traceback.extract_tb(error.__traceback__)[-_CALLS:]
    places = " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in reversed(calls))
    print(f"internal error: {what}: {type(error).__name__} at {places}", file=sys.stderr, flush=True)
    return failed(f"{what} ({type(error).__name__})")
