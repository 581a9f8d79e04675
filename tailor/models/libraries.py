"""Imports the libraries of models: transformers, bitsandbytes and PEFT."""

from __future__ import annotations

from contextlib import suppress

from tailor import machine
from tailor.imports import uncollected


def import_libraries(*, adapter: bool = False) -> None:
    """Import them before a model is built, in less time than their first use would take. adapter: PEFT too.

    On import, bitsandbytes compiles four functions with `torch.compile`, for which torch imports TorchInductor: 1.1 of the
    7.0 CPU seconds until the first step. CPUs and CUDA use other kernels instead, except for 4-bit weights of an odd
    width, whose function has one multiplication per element and so gives the same bits without compilation.
    """
    with uncollected():
        # torch reads the variable at each call of `torch.compile`. Errors are reported by the library that needs the package.
        with (
            machine.environment({"TORCHDYNAMO_DISABLE": "1"}),
            suppress(ImportError, OSError, RuntimeError),
        ):
            import bitsandbytes  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        if adapter:
            import peft  # noqa: F401
