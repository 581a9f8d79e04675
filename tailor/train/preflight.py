"""Checks of a recipe's model that need no weights, before its data is prepared, and the facts that the plan takes from it."""

from __future__ import annotations

import dataclasses

import torch

from tailor.models import attention, outline
from tailor.models.adapters import quantized
from tailor.models.beacon.modules import add_beacons
from tailor.models.causal import CausalModel
from tailor.models.embedding.embedder import fit_to_embed
from tailor.models.experts.loading import quantizable
from tailor.models.load import adapt
from tailor.models.new_tokens import add_rows
from tailor.models.quantization import plain_linear
from tailor.models.router import Router
from tailor.plan.outline import NoOutline, Outline, is_within
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.train import Train
from tailor.train.parameter_groups import describe_groups


def preflight(model: Model, method: Method, optim: Optim, train: Train) -> Outline | NoOutline:
    """Build and adapt the recipe's model on the meta device: its structure, and the groups of its trained weights.

    Raises ModelError for what training would refuse: unknown modules, an attention that the class does not have, learning
    rates of weights that are not trained, quantization of too few weights.
    """
    network = outline.build(model, scores=method.ranked_passages is not None)
    if isinstance(network, NoOutline):
        return network
    attention.require_supported(network, model.attention)
    Router.of(network.config.get_text_config(), model)
    if model.quantize is not None:
        plain_linear(network)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if model.add_tokens:
            add_rows(network, model)
        found = outline.read(network, model)
        _check_saved([*found.all_linear, *(stack.name for stack in quantizable(network))], model)
        if model.beacon is not None:
            add_beacons(network, model.beacon)
        else:
            network = adapt(
                network,
                model,
                precision="fp32",
                activation_checkpointing=int(train.activation_checkpointing),
                activation_offloading=train.activation_offloading,
                tiled_mlp=train.tiled_mlp,
                seed=train.seed,
            )
        trained = CausalModel(network, layout="rows")
        if method.embedding is not None:
            fit_to_embed(trained, method.embedding, seed=train.seed)
    return dataclasses.replace(
        found,
        adapter=model.adapter,
        groups=describe_groups(optim, trained),
        trains_head=any(parameter.requires_grad for parameter in trained.head.parameters()),
    )


def _check_saved(names: list[str], model: Model) -> None:
    """ModelError if a module that is to be trained in full would be quantized. names: what `model.quantize` quantizes."""
    if model.quantize is None or model.adapter is None:
        return
    for name in model.adapter.modules_to_save:
        if any(is_within(full, [name]) for full in names):
            raise quantized(name)
