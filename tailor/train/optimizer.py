"""Optimizers over groups of the trained weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models.adapter_init import initial_factors
from tailor.models.causal import CausalModel
from tailor.spec.optim import Optim
from tailor.train.muon import MuonWithAdamW
from tailor.train.schedule_free import schedule_free

RATIO = "learning_rate_ratio"
"""Key of a parameter group: its learning rate as a multiple of `optim.learning_rate`."""


def build_optimizer(spec: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trained weights, with weight decay on those that `decayed` names.

    ModelError if a learning rate is set for weights that the model does not have, or a package is missing.
    """
    groups = parameter_groups(spec, model)
    rate, betas, eps = spec.learning_rate, spec.betas, spec.eps
    match spec.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)
        case "sgd":
            for group in groups:
                del group["weight_decay"]
            return torch.optim.SGD(groups, lr=rate, momentum=spec.momentum)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate)
        case "muon":
            return MuonWithAdamW(
                groups, _muon_matrices(model), lr=rate, momentum=spec.momentum, betas=betas, eps=eps
            )
        case "schedule_free":
            return schedule_free(groups, lr=rate, betas=betas, eps=eps)
    import bitsandbytes.optim as bnb

    match spec.optimizer:
        case "lion":
            return bnb.Lion(groups, lr=rate, betas=betas)
        case "paged_adamw":
            return bnb.PagedAdamW(groups, lr=rate, betas=betas, eps=eps)
        case "adamw_8bit":
            return _tables_in_32_bits(bnb.AdamW8bit(groups, lr=rate, betas=betas, eps=eps), model)
        case "paged_adamw_8bit":
            return _tables_in_32_bits(bnb.PagedAdamW8bit(groups, lr=rate, betas=betas, eps=eps), model)
    raise AssertionError(spec.optimizer)


def parameter_groups(spec: Optim, model: nn.Module) -> list[dict[str, Any]]:
    """The trained weights in groups of one learning rate and weight decay, those with weight decay first.

    ModelError if `learning_rate_ratios` has a ratio for a kind of weights of which none is trained.
    """
    with_decay, kinds = set(decayed(model)), _kinds(model)
    ratios = {kind: ratio for kind, ratio in spec.learning_rate_ratios if ratio != 1}
    trained = list(trained_parameters(model))
    for kind in ratios:
        if not any(kinds(name, parameter) == kind for name, parameter in trained):
            raise ModelError(
                f"optim.learning_rate_ratios.{kind}: this recipe trains no such weights in this model",
                hint="remove it, or name their module in model.adapter.modules_to_save",
            )
    groups: dict[tuple[float, bool], list[Any]] = {
        (ratio, decays): [] for ratio in dict.fromkeys((1.0, *ratios.values())) for decays in (True, False)
    }
    for name, parameter in trained:
        groups[ratios.get(kinds(name, parameter), 1.0), name in with_decay].append(parameter)
    return [
        {"params": parameters, "weight_decay": spec.weight_decay if decays else 0.0, RATIO: ratio}
        for (ratio, decays), parameters in groups.items()
        if parameters
    ]


_LORA_B = re.compile(r"\.lora_(B|embedding_B|magnitude_vector)\.")
"""In the name of a weight: LoRA's matrix B, or DoRA's magnitudes."""


def _kinds(model: nn.Module) -> Callable[[str, Any], str]:
    """A function of the name and the weight: its kind, a key of `LearningRateRatios`, or "other"."""
    embeddings = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    for module in model.modules():  # PEFT's rows of new tokens
        if isinstance(getattr(module, "base_layer", None), nn.Embedding):
            embeddings |= {id(p) for p in getattr(module, "trainable_tokens_delta", {}).values()}
    head = {id(p) for p in model.head.parameters()} if isinstance(model, CausalModel) else set()

    def kind(name: str, parameter: Any) -> str:
        if _LORA_B.search(name):
            return "lora_b"
        if id(parameter) in embeddings:
            return "embeddings"
        return "head" if id(parameter) in head else "other"

    return kind


def _muon_matrices(model: nn.Module) -> set[int]:
    """Ids of the weights that Muon trains: matrices of hidden layers, without embeddings and the output head."""
    with_decay, kinds = set(decayed(model)), _kinds(model)
    return {
        id(parameter)
        for name, parameter in trained_parameters(model)
        if name in with_decay
        and parameter.ndim == 2
        and "lora_embedding_" not in name
        and "oft_R" not in name  # the free elements of several skew-symmetric matrices
        and kinds(name, parameter) not in ("embeddings", "head")
    }


def _tables_in_32_bits(optimizer: Any, model: nn.Module) -> Any:
    """Keep the state of embedding tables, and of the rows of new tokens, in 32 bits, as bitsandbytes and Hugging Face's Trainer advise (arXiv 2110.02861, 2.3).

    The gradients of rare tokens are small, and blocks of 8 bits lose them.
    """
    # A manager of its own: the global one finds weights by their number, in all optimizers of the process.
    optimizer.mng = object.__new__(type(optimizer.mng))
    optimizer.mng.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})
        for name in getattr(module, "trainable_tokens_delta", {}):
            optimizer.mng.register_module_override(module.trainable_tokens_delta, name, {"optim_bits": 32})
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`, after which a paged optimizer's state is still paged.

    bitsandbytes would move it to the GPU, where it then stays.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    paged: Any = optimizer
    before = {weight: dict(values) for weight, values in paged.state.items()}
    paged.load_state_dict(state, move_to_device=False)
    for weight, values in paged.state.items():
        for key, value in values.items():
            if not torch.is_tensor(value):
                continue
            if key not in ("state1", "state2"):
                values[key] = value.to(weight.device)
                continue
            buffer = before.get(weight, {}).get(key)
            if buffer is None or buffer.dtype != value.dtype:
                buffer = paged.get_state_buffer(weight, dtype=value.dtype)
            if weight.is_cuda:
                torch.cuda.synchronize(weight.device)  # the GPU may still fill a page that the CPU writes now
            values[key] = buffer.copy_(value)


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Shape of the full weight. DeepSpeed stores it in `ds_shape`, because it empties a sharded weight."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


_NORM = re.compile(r"Norm(\d[dD]|Gated)?$")
"""In the name of a class: a normalization."""
_NOT_DECAYED = re.compile(r"bias|ia3_l|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""In the lower-case name of a weight: no weight decay, as in Hugging Face's Trainer. (IA)³ has factors that start at 1."""
_STATE_SPACE = ("A_log", "D", "dt_bias")
"""Weights of state-space mixers without weight decay (Gu and Dao 2023). Loading a model drops their `_no_weight_decay`."""


def decayed(model: nn.Module) -> list[str]:
    """Names of the trained weights with weight decay: matrices that belong to no normalization and are no bias.

    By the type of their module and by their name, as in Hugging Face's Trainer, because norms and biases of experts and of
    heads have two dimensions too. Weights that their model marks with `_no_weight_decay` have none.
    """
    excluded: set[int] = set()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) or _NORM.search(type(module).__name__):
            excluded |= {id(parameter) for parameter in module.parameters()}
        if "A_log" in own:
            excluded |= {id(own[name]) for name in _STATE_SPACE if name in own}
    return [
        name
        for name, parameter in trained_parameters(model)
        if len(shape_of(parameter)) >= 2
        and id(parameter) not in excluded
        and not _NOT_DECAYED.search(name.lower())
        and not getattr(parameter, "_no_weight_decay", False)
    ]


def optimizer_order(optimizer: Any, model: nn.Module) -> list[str]:
    """Names of the trained weights in the order of the optimizer's groups, in which its state numbers them."""
    names = {id(parameter): name for name, parameter in trained_parameters(model)}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def numbering(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the weights by their number in a saved optimizer state. shapes: of the trained weights, in the model's order."""
    if NAMES in state:
        return list(state[NAMES])
    return sorted(shapes, key=lambda name: len(shapes[name]) < 2)  # saved before: all matrices first


NAMES = "names"
"""Key of a saved optimizer state: the names of the weights in the order of their numbers."""


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups. rate: of the groups with the ratio 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def saved_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """(name, weight) of every weight of a checkpoint: the trained ones, and the frozen initial factors of PiSSA and OLoRA."""
    return (*trained_parameters(model), *initial_factors(model))


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """(name, weight) of every trained weight, in the model's order."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
