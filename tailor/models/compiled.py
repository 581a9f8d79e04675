"""`train.compile`: torch.compile on the decoder layers of a model.

Each layer is compiled, not the whole decoder: layers of a class share their code, so that compilation takes the time of one
layer. What surrounds them (embedding noise, masks, activation checkpointing, the loss) is as without compilation.
Attention over packed documents stays outside the graphs, because its kernels depend on the documents' lengths. Shapes are
dynamic: another number of tokens compiles nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tailor.errors import ModelError
from tailor.models import attention
from tailor.models.activations import decoder_layers
from tailor.models.decoder import decoder_of
from tailor.models.files import first_line

BACKEND = "inductor"
VARIANTS = 64
"""Maximum number of graphs of a layer's code; after that it runs uncompiled. Kinds of layers, training and evaluation, and an
adapter that is on or off have graphs of their own. PyTorch's default of 8 is too small for models with several kinds."""


def compile_layers(base: Any) -> None:
    """Compile the decoder layers of a transformers model in place; the whole decoder if it marks no layers."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = VARIANTS
    attention.register(compiled=True)
    for layer in decoder_layers(base) or [decoder_of(base)]:
        layer.compile(backend=BACKEND, dynamic=True)


@contextmanager
def compilation_errors() -> Iterator[None]:
    """Context that turns errors of torch.compile, which come with the first steps, into ModelError."""
    import torch._dynamo.exc

    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = getattr(error, "inner_exception", error)
        raise ModelError(
            f"train.compile: torch.compile failed: {first_line(reason)}",
            hint="remove train.compile; on a CPU it needs a C++ compiler, such as g++",
        ) from error
