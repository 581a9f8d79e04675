"""Names of the updates of stacked experts in PEFT's files (`target_parameters`).

PEFT wraps the module that has the stacks once per stack, in the order of its weights, so that the first is innermost. With
`gate_up_proj` and `down_proj`, `experts.base_layer.lora_A` is of `gate_up_proj`, and `experts.lora_A` of `down_proj`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tailor.errors import ModelError
from tailor.models.experts.stacks import Stack

WRAPPED = ".base_layer"


def is_wrapper(module: str, modules: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether a module in the file's names is PEFT's wrapper of a stack. modules: all with an update. config: PEFT's."""
    inner = unwrapped(module)
    owners = {name.rpartition(".")[0] for name in targets(config)}
    by_target = any(f".{inner}".endswith(f".{owner}") for owner in owners - {""})
    return inner != module or by_target or ("" in owners and inner.endswith(".experts"))


def identify(
    module: str,
    wrappers: Collection[str],
    rows: int,
    config: Mapping[str, Any],
    stacks: Sequence[Stack] | None,
    url: str,
) -> tuple[str, int, bool]:
    """(name, experts, whether it is transposed) of the stack of a wrapper.

    rows: of its matrix A. stacks: of the base, in the order of its weights; None if the base is not at hand. Then the name is
    the wrapper's, and the orientation is not known. ModelError if the adapter does not fit.
    """
    inner, depth = unwrapped(module), module.count(WRAPPED)
    if stacks is None:
        rank = int(config["r"])
        if config.get("rank_pattern") or config.get("alpha_pattern") or rows % rank:
            raise ModelError(
                f"the adapter at {url} has several ranks or scales and adapts experts in one tensor, so it cannot be averaged",
                hint="merge each adapter with `tailor merge`, then average the models",
            )
        return module, rows // rank, False
    count = sum(unwrapped(other) == inner for other in wrappers)
    own = [
        stack
        for stack in stacks
        if stack.module == inner and any(f".{stack.name}".endswith(f".{name}") for name in targets(config))
    ]
    hint = "the base must be the model that the adapter was trained on; if it is, copy the adapter again"
    if len(own) != count:
        raise ModelError(
            f"the adapter at {url} does not fit its base: it adapts {count} tensors of {inner}, the base has {len(own)} of "
            "their names",
            hint=hint,
        )
    stack = own[count - 1 - depth]
    if rows % stack.experts:
        raise ModelError(
            f"the adapter at {url} does not fit its base: {stack.name} has {stack.experts} experts, and the adapter of them "
            f"{rows} rows, which is no multiple",
            hint=hint,
        )
    return stack.name, stack.experts, stack.transposed


def unwrapped(module: str) -> str:
    """The name of the module that PEFT's wrappers are around."""
    while module.endswith(WRAPPED):
        module = module.removesuffix(WRAPPED)
    return module


def targets(config: Mapping[str, Any]) -> list[str]:
    """`target_parameters` without weights of modules, whose updates have the names of their modules."""
    return [name for name in config.get("target_parameters") or () if not name.endswith(".weight")]
