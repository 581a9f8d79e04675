"""Run the checks of a rehearsal: one that fails skips those that depend on it, and no others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tailor import machine
from tailor.errors import TailorError, WorkerError
from tailor.printable import printable
from tailor.redaction import redacted
from tailor.rehearse.checks import CHECKS, Check, Skip
from tailor.rehearse.rehearsal import Rehearsal

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """How a check ended. seconds: of wall-clock time. hint: what to do, or empty."""

    check: str
    status: Status
    message: str
    hint: str
    seconds: float


def rehearse(state: Rehearsal, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """The results of the checks, as they end."""
    machine.wait_without_spinning()
    failed: set[str] = set()
    for check in checks:
        began = time.monotonic()
        if missing := [name for name in check.needs if name in failed]:
            failed.add(check.name)
            yield Result(check.name, "skipped", f"needs {', '.join(missing)}", "", 0.0)
            continue
        status, message, hint = _run(check, state)
        if status == "failed":
            failed.add(check.name)
        yield Result(check.name, status, _shown(message), _shown(hint), time.monotonic() - began)


def _run(check: Check, state: Rehearsal) -> tuple[Status, str, str]:
    try:
        return "ok", check.run(state), ""
    except Skip as reason:
        return "skipped", str(reason), ""
    except WorkerError as error:  # its log is in the folder that is removed
        traceback.print_exception(error)
        return "failed", error.message, "the traceback is on stderr"
    except TailorError as error:
        return "failed", error.message, error.hint or ""
    except Exception as error:  # a model's code, a driver or a user's function may raise anything
        traceback.print_exception(error)
        reason = " ".join(str(error).split())
        return "failed", f"{type(error).__name__}: {reason}", "the traceback is on stderr"


def _shown(text: str) -> str:
    """The text without secrets and without characters that a terminal obeys."""
    return printable(redacted(text), lines=True)
