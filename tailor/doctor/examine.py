"""Run the checks, each by itself: one that fails or hangs does not end the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from importlib import import_module

from tailor.doctor.finding import Check, Context, Finding
from tailor.errors import TailorError
from tailor.printable import printable
from tailor.redaction import redacted

CHECKS = {
    "versions": "tailor.doctor.checks.versions:check",
    "packages": "tailor.doctor.checks.packages:check",
    "gpu": "tailor.doctor.checks.gpu:check",
    "memory": "tailor.doctor.checks.memory:check",
    "disk": "tailor.doctor.checks.disk:check",
    "network": "tailor.doctor.checks.network:check",
    "ray": "tailor.doctor.checks.ray:check",
    "tokens": "tailor.doctor.checks.tokens:check",
    "hub": "tailor.doctor.checks.hub:check",
    "stores": "tailor.doctor.checks.stores:check",
    "gguf": "tailor.doctor.checks.gguf:check",
}
"""Name -> the function. They run in this order."""

SECONDS = 120.0
"""Time limit of a check. The check of the GPU has its own, shorter one."""


def examine(
    context: Context, checks: Mapping[str, str] = CHECKS, seconds: float = SECONDS
) -> Iterator[tuple[str, Finding]]:
    """(name of the check, finding), as the checks end."""
    for name, code in checks.items():
        for found in _findings(code, context, seconds):
            yield name, _shown(found)


def _findings(code: str, context: Context, seconds: float) -> list[Finding]:
    found: list[Finding] = []

    def run() -> None:
        try:
            module, _, attribute = code.partition(":")
            check: Check = getattr(import_module(module), attribute)
            for one in check(context):
                found.append(one)
        except TailorError as error:
            found.append(Finding("failed", error.message, error.hint or ""))
        except (
            Exception,
            SystemExit,
        ) as error:  # a driver, a client or an installed package may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            found.append(
                Finding(
                    "warning",
                    f"this check failed: {type(error).__name__}: {reason}",
                    "report it if it repeats",
                )
            )

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = Finding(
            "warning", f"no result within {seconds:g} s", "a device, disk or server does not respond"
        )
        return [*found, late]
    return found


def _shown(found: Finding) -> Finding:
    """The finding without secrets and without characters that a terminal obeys."""
    return Finding(found.status, printable(redacted(found.message)), printable(redacted(found.hint)))
