"""The structure of a base model, as plain values that `tailor.models.outline` reads from the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tailor.plan import experts
from tailor.plan.experts import Stacks
from tailor.spec.adapter import Adapter


@dataclass(frozen=True)
class Kind:
    """Weights of one name in modules of one type, such as `Linear.bias`."""

    name: str
    tensors: int
    parameters: int
    example: str
    """Name of the first of these weights in the model."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trained weights with the same weight decay and learning rate."""

    weight_decay: float
    learning_rate: float
    """The peak."""
    tensors: int
    parameters: int
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Outline:
    """The structure of a base model. Names are those of transformers; tied weights are counted once."""

    parameters: Mapping[str, int]
    """Name of each weight -> its number of elements."""
    used: int
    """Number of elements that a text uses: the decoder and the head, without a vision tower."""
    expert: int
    """Number of elements in the routed experts."""
    table: int
    """Number of elements of the token embedding."""
    tied: bool
    """Whether the output head is the token embedding."""
    targets: Mapping[str, tuple[int, int]]
    """Name of each module that can have a LoRA adapter (linear layers, embeddings) -> its input and output features."""
    all_linear: tuple[str, ...]
    """Of these, the ones that `model.adapter.target_modules: all-linear` selects."""
    quantized: int
    """Number of elements that `model.quantize` quantizes."""
    stacks: Stacks
    routers: tuple[str, ...]
    """Names of the modules that route tokens to experts."""
    dropout: Mapping[str, float]
    """Key in `config.json` -> probability, for each dropout above 0 that is active in training."""
    adapter: Adapter | None = None
    """The recipe's adapter, with which `groups` were counted."""
    groups: tuple[ParameterGroup, ...] = ()
    """The trained weights of the recipe."""
    has_head: bool = True
    """Whether there is an output head. An encoder has none."""
    trains_head: bool = True
    """Whether the recipe trains the output head, if it trains all weights. Methods that only embed freeze it."""

    @property
    def total(self) -> int:
        """Number of elements of all weights."""
        return sum(self.parameters.values())

    @property
    def tables(self) -> int:
        """Number of elements of the token embedding and, if there is one that is not tied, the output head."""
        return self.table * (2 if self.has_head and not self.tied else 1)

    @property
    def trained(self) -> int:
        """Number of elements of the recipe's trained weights."""
        return sum(group.parameters for group in self.groups)

    def adapter_parameters(self, adapter: Adapter) -> int:
        """Number of elements of an adapter and of the modules that are trained with it."""
        names = (
            [name for name in self.all_linear if is_chosen(name, adapter)]
            if adapter.target_modules == "all-linear"
            else adapter.target_modules
        )
        in_full = [*adapter.modules_to_save, *(self.routers if adapter.router else ())]
        saved = [name for name in self.parameters if _is_saved(name, in_full)]
        adapted = (
            adapter.weights(full, *self.targets[full])
            for full in self.targets
            if any(f".{full}".endswith(f".{name}") for name in names)
            and not (adapter.target_modules == "all-linear" and is_within(full, adapter.modules_to_save))
        )
        in_full_too = sum(self.parameters[name] for name in saved)
        return sum(adapted) + experts.adapter_parameters(self.stacks, adapter) + in_full_too


def is_routed(name: str) -> bool:
    """Whether a module or weight, by its full name, belongs to the experts that tokens are routed to."""
    return ".experts." in f"{name}."


def is_shared(name: str) -> bool:
    """Whether a module or weight, by its full name, belongs to an expert that every token goes through."""
    return any(part.startswith("shared_") and not part.endswith("_gate") for part in name.split("."))


def is_chosen(name: str, adapter: Adapter) -> bool:
    """Whether `adapter.experts` lets `all-linear` select the linear module of this full name."""
    if adapter.experts is None or adapter.experts is True:
        return True
    return not is_routed(name) and (adapter.experts == "shared" or not is_shared(name))


@dataclass(frozen=True)
class NoOutline:
    """Why a model could not be built without its weights. Its sizes are then estimated from `config.json`."""

    reason: str


NOT_BUILT = NoOutline("the model was not built")


def _is_saved(parameter: str, modules: Iterable[str]) -> bool:
    """Whether PEFT trains a weight in full: the name of a module that has it ends with one of `modules`."""
    parts = parameter.split(".")
    owners = [".".join(parts[:count]) for count in range(1, len(parts))]
    return any(owner.endswith(module) for owner in owners for module in modules)


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or weight, by its full name, is one of `modules` or inside one. modules: full names or their last parts."""
    return any(f".{module}." in f".{name}." for module in modules)
