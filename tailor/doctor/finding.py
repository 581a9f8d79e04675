"""What a check of the machine finds, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

Status = Literal["ok", "warning", "failed"]
"""`warning`: the run may fail or be slow. `failed`: it cannot succeed like this."""

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the result. hint: what to do; empty if nothing."""

    status: Status
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Context:
    """What the checks are about. recipe: None if none was given. offline: no request leaves this machine."""

    recipe: Recipe | None = None
    offline: bool = False


Check = Callable[[Context], Iterator[Finding]]
"""A check yields its findings, none if it does not concern the recipe. It may raise: that is a finding too."""
