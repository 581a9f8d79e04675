"""A description of the optimizer's groups for the plan, from the groups that training uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tailor.plan.outline import Kind, ParameterGroup
from tailor.spec.optim import Optim
from tailor.train.optimizer import RATIO, parameter_groups, shape_of, trained_parameters


def describe_groups(spec: Optim, model: nn.Module) -> tuple[ParameterGroup, ...]:
    """The groups of `parameter_groups`. The model may be on the meta device. Raises ModelError as that function does."""
    names = {id(parameter): name for name, parameter in trained_parameters(model)}
    return tuple(
        ParameterGroup(
            weight_decay=group["weight_decay"],
            learning_rate=spec.learning_rate * group[RATIO],
            tensors=len(group["params"]),
            parameters=sum(_count(parameter) for parameter in group["params"]),
            kinds=_kinds(model, [(names[id(parameter)], parameter) for parameter in group["params"]]),
        )
        for group in parameter_groups(spec, model)
    )


def _kinds(model: nn.Module, weights: Iterable[tuple[str, Any]]) -> tuple[Kind, ...]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, parameter in weights:
        found.setdefault(_kind(model, name), []).append((name, parameter))
    return tuple(
        Kind(
            name=kind,
            tensors=len(members),
            parameters=sum(_count(parameter) for _, parameter in members),
            example=members[0][0].removeprefix("network."),
        )
        for kind, members in found.items()
    )


def _kind(model: nn.Module, name: str) -> str:
    """`Linear.bias`, by the type of the module; for a weight of an adapter, PEFT's name of it (`lora_A`)."""
    *path, leaf = name.split(".")
    if "default" in (*path, leaf) and "modules_to_save" not in path:
        parts = [*path, leaf]
        return parts[parts.index("default") - 1]
    return f"{type(model.get_submodule('.'.join(path))).__name__}.{leaf}"


def _count(parameter: Any) -> int:
    count = 1
    for size in shape_of(parameter):
        count *= size
    return count
