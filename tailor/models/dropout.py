"""The dropout of a base model, which its `config.json` sets: which keys are active in training, and `model.base_dropout`.

transformers has no list of them, and configs have keys that a causal language model does not use. So a model is built in
which each key has a probability of its own, and the modules show which of these they took.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models.decoder import decoder_of
from tailor.models.scoring_head import is_scorer

_READ = re.compile(r"\bself\.config\.(\w*drop\w*)")
"""A key that the code of a module reads in its forward pass."""

Build = Callable[[Any], Any]
"""Builds a model without weights from a config."""


def active(config: Any, build: Build) -> dict[str, float]:
    """Key -> probability, for each dropout above 0. Nested keys are joined by dots. config: is not changed."""
    if not any(value > 0 for _, _, _, value in _keys(config)):
        return {}
    found = _effective(config, build)
    return {key: float(value) for key, _, _, value in _keys(config) if value > 0 and key in found}


def write(config: Any, value: float, build: Build, path: str) -> None:
    """Set the dropouts that the model has. LayerDrop, which skips whole layers, is only lowered. ModelError if it has none."""
    found = _effective(config, build)
    if not found:
        raise ModelError(
            f"model.base_dropout: {path} ({config.model_type}) has no dropout",
            hint="remove model.base_dropout",
        )
    for key, owner, name, before in list(_keys(config)):
        new = min(before, value) if "layerdrop" in name else value
        if key in found and new != before:
            try:
                setattr(owner, name, new)
            except Exception as error:  # huggingface_hub's, for a field of another type
                raise ModelError(
                    f"model.base_dropout: the class of {path} does not let {key} be {value:g}",
                    hint="set model.base_dropout: 0, or remove it",
                ) from error


def _effective(config: Any, build: Build) -> set[str]:
    """The keys that modules of the decoder take, and those of a scoring head."""
    keys = list(_keys(config))
    marks = {(number + 1) / 1024: key for number, (key, *_) in enumerate(keys)}  # exact in binary
    try:
        for mark, (_, owner, name, _) in zip(marks, keys, strict=True):
            vars(owner)[name] = mark  # not setattr: the config of MPT declares some of them as integers
        network = build(config)
    finally:
        for _, owner, name, value in keys:
            vars(owner)[name] = value
    decoder = network if is_scorer(network) else decoder_of(network)
    found = {marks[value] for module in decoder.modules() for value in _values(module) if value in marks}
    read = {name for kind in {type(module) for module in decoder.modules()} for name in _read(kind)}
    return found | {key for key, *_ in keys if key.rsplit(".", 1)[-1] in read}


def _keys(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, Any]]:
    """(key, the config that has it, its attribute, value) of each number whose name speaks of dropout."""
    from transformers import PreTrainedConfig

    for name, value in sorted(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            yield from _keys(value, f"{prefix}{name}.")
        elif "drop" in name and isinstance(value, Real) and not isinstance(value, bool):
            yield f"{prefix}{name}", config, name, value


def _values(module: nn.Module) -> Iterator[float]:
    for name, value in vars(module).items():
        if isinstance(value, float) and ("drop" in name or isinstance(module, nn.modules.dropout._DropoutNd)):
            yield value


def _read(kind: type[nn.Module]) -> list[str]:
    if kind.__module__.startswith(torch.__name__):
        return []
    try:
        return _READ.findall(inspect.getsource(kind))
    except (OSError, TypeError):  # a class without a source file
        return []
