"""Recurrent layers over packed documents: each document starts with an empty state.

State-space, linear-attention and short-convolution layers of transformers carry their state through a row from left to
right. `isolate` makes those of a model run over the documents of a stream [1, T] as over rows of their own, so that no state
passes from one to the next, with transformers' own code and with the kernels of mamba-ssm and others alike. Documents of
similar length share a call, padded on the right by less than their own length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from tailor.models.decoder import decoder_of
from tailor.models.documents import Documents

WITHOUT_CONVOLUTION = ("MiniMaxLightningAttention",)
"""Classes of recurrent mixers that have no convolution."""

_documents: ContextVar[Documents | None] = ContextVar("documents", default=None)
"""The documents of the stream in the decoder's forward pass. Not an argument of the layers: Mamba's get only some."""


@dataclass(frozen=True)
class _Rows:
    """The positions of a stream of T tokens when each document is a row of its own."""

    groups: tuple[torch.Tensor, ...]
    """int64[D, L] per group: positions in the stream. Past its end, a document's last token is repeated."""
    inverse: torch.Tensor
    """int64[T]: position of each token of the stream in the groups, flattened one after another."""

    @classmethod
    def of(cls, documents: Documents) -> _Rows:
        """Documents whose lengths have as many binary digits share a group."""
        kept: dict[str, _Rows] = vars(documents)  # one for all layers
        if "_rows" not in kept:
            device = documents.offsets.device
            sizes: dict[int, list[int]] = {}
            for index, (start, end) in enumerate(documents.bounds):
                sizes.setdefault((end - start).bit_length(), []).append(index)
            groups, inverse, first = [], torch.empty(documents.bounds[-1][1], dtype=torch.int64), 0
            for members in sizes.values():
                bounds = [documents.bounds[index] for index in members]
                longest = max(end - start for start, end in bounds)
                groups.append(
                    torch.stack(
                        [torch.arange(start, start + longest).clamp(max=end - 1) for start, end in bounds]
                    )
                )
                for row, (start, end) in enumerate(bounds):
                    inverse[start:end] = first + row * longest + torch.arange(end - start)
                first += groups[-1].numel()
            kept["_rows"] = cls(tuple(group.to(device) for group in groups), inverse.to(device))
        return kept["_rows"]


def keep_scale(config: Any) -> None:
    """Make a config of RWKV (version 4) leave the weights of its layers as they are in inference.

    transformers halves them in place every few layers, against overflow in float16. It knows neither adapters nor quantized
    weights, and a model saved meanwhile would have the smaller weights.
    """
    if config.model_type == "rwkv":
        config.rescale_every = 0


def isolate(base: Any) -> bool:
    """Make the recurrent layers of a transformers model start each document of a stream with an empty state. False if it has none.

    The model then takes the keyword argument `documents` (`documents.Documents`), which must not be split over workers.
    `probe.packs_in_isolation` checks the result.
    """
    found = [module for module in base.modules() if _is_recurrent(module)]
    for mixer in found:
        mixer.forward = MethodType(_by_document, mixer)  # bound, so that a deep copy uses its own weights
    if found and not is_isolated(base):
        decoder = decoder_of(base)
        decoder.register_forward_pre_hook(_enter, with_kwargs=True)
        decoder.register_forward_hook(_leave, always_call=True)
    return bool(found)


def is_isolated(base: Any) -> bool:
    """Whether the recurrent layers of a model follow the documents."""
    return _enter in decoder_of(base)._forward_pre_hooks.values()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of `torch.utils.checkpoint`: layers computed again in the backward pass find their own documents."""
    return nullcontext(), _within(_documents.get())


def _is_recurrent(module: nn.Module) -> bool:
    """Whether a module mixes tokens by a state: all in transformers have a short depthwise convolution over the tokens."""
    return type(module).__name__ in WITHOUT_CONVOLUTION or any(
        isinstance(child, nn.Conv1d) and child.groups > 1 for child in module.children()
    )


@contextmanager
def _within(documents: Documents | None) -> Iterator[None]:
    before = _documents.set(documents)
    try:
        yield
    finally:
        _documents.reset(before)


def _enter(decoder: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
    _documents.set(options.get("documents"))


def _leave(decoder: nn.Module, arguments: Any, output: Any) -> None:
    _documents.set(None)


def _by_document(mixer: Any, *arguments: Any, **options: Any) -> Any:
    """The forward pass of a recurrent mixer. Its hidden states are [1, T, H] if there are documents, and so is its output."""
    forward, documents = type(mixer).forward, _documents.get()
    if documents is None:
        return forward(mixer, *arguments, **options)
    if documents.sequence is not None:
        raise ValueError("a recurrent layer cannot split its sequences over workers")
    if documents.shared is not None:
        raise ValueError("a recurrent layer cannot read tokens that two documents share")
    options.pop("documents", None)
    rows = _Rows.of(documents)
    outputs = [
        forward(mixer, *_select(arguments, group, rows), **_select(options, group, rows))
        for group in rows.groups
    ]
    hidden = [output[0] if isinstance(output, tuple) else output for output in outputs]  # [D, L, H] each
    stream = torch.cat([part.flatten(0, 1) for part in hidden]).index_select(0, rows.inverse)[
        None
    ]  # [1, T, H]
    return (stream, *outputs[0][1:]) if isinstance(outputs[0], tuple) else stream


def _select(value: Any, group: torch.Tensor, rows: _Rows) -> Any:
    """An argument for a group of documents: each tensor [1, T, ...] in it becomes [D, L, ...]."""
    if isinstance(value, torch.Tensor) and value.shape[:2] == (1, len(rows.inverse)):
        return value[0].index_select(0, group.flatten()).unflatten(0, group.shape)
    if isinstance(value, tuple):
        return tuple(_select(part, group, rows) for part in value)
    if isinstance(value, dict):
        return {name: _select(part, group, rows) for name, part in value.items()}
    return value
