"""The memory of this machine, and the weights that it has to load."""

from __future__ import annotations

from collections.abc import Iterator

from tailor import machine
from tailor.doctor.finding import GIB, Context, Finding
from tailor.doctor.needs import weights_bytes

MIN_BYTES = 4 * GIB
"""Below it, the libraries alone leave little."""


def check(context: Context) -> Iterator[Finding]:
    memory, cpus = machine.memory_bytes(), machine.cpus()
    text = f"{memory / GIB:.1f} GiB of memory, {cpus} CPU{'s' if cpus > 1 else ''}"
    weights = weights_bytes(context.recipe) if context.recipe is not None else None
    if weights is not None and weights > memory:
        yield Finding(
            "failed",
            f"{text}; the weights of {context.recipe and context.recipe.model.path} have {weights / GIB:.1f} GiB",
            "use a machine with more memory, or a smaller model; `tailor plan` forecasts the rest",
        )
    elif memory < MIN_BYTES:
        yield Finding("warning", text, "use a machine or a container limit of 4 GiB or more")
    else:
        yield Finding("ok", text)
