"""A model whose weights are never whole on any worker but the first.

Every worker builds the network without weights. Rank 0 loads it in host memory, adapts and proves it, and hands its
weights out, one tensor at a time; decoder layer by decoder layer, each worker keeps what it is to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tailor.errors import TailorError
from tailor.models import attention
from tailor.models.causal import CausalModel, base_of
from tailor.models.embedding.embedder import fit_to_embed, prove_embedding
from tailor.models.load import adapt, base_dtype, load_network, prove, skeleton
from tailor.spec.methods.base import EmbeddingMethod
from tailor.spec.model import Model

HOST = torch.device("cpu")
Place = Callable[[nn.Module], None]
"""Given a module whose weights are all there, keeps this worker's part of them."""


def load_sharded(
    spec: Model,
    place: Place,
    *,
    rank: int,
    world: int,
    device: torch.device,
    precision: str,
    frozen_dtype: str,
    pack: bool,
    activation_checkpointing: int,
    activation_offloading: bool,
    tiled_mlp: bool,
    seed: int,
    embeds: EmbeddingMethod | None = None,
) -> tuple[CausalModel, tuple[int, int]]:
    """The model in parts, and how many weights are trained and how many there are. Collective.

    embeds: a method that embeds, whose projection is added and whose attention is proven.
    Host memory: the whole model once, by rank 0, in the dtype that it is held in. Raises a ModelError on every rank.
    """
    dtype = base_dtype(spec, frozen_dtype)
    whole: CausalModel | None = None
    error: TailorError | None = None
    settings: dict[str, Any] = {
        "precision": precision,
        "activation_checkpointing": activation_checkpointing,
        "activation_offloading": activation_offloading,
        "tiled_mlp": tiled_mlp,
        "seed": seed,
    }
    if rank == 0:
        try:
            torch.manual_seed(seed)
            loaded = adapt(load_network(spec, dtype=dtype, device=HOST), spec, **settings)
            whole = prove(loaded, spec, device=HOST, precision=precision, pack=pack, static_shapes=False)
            if embeds is not None:
                fit_to_embed(whole, embeds, seed=seed)
                prove_embedding(whole, embeds, precision)
        except TailorError as found:
            error = found
    proven = (
        (whole.layout, whole.splits_head, whole.base.config._attn_implementation)
        if whole is not None
        else None
    )
    layout, splits_head, implementation = _agreed((error, proven), world)
    attention.register()
    network = skeleton(spec, frozen_dtype=frozen_dtype, **settings)
    base_of(network).set_attn_implementation(implementation)
    model = CausalModel(network, layout=layout, splits_head=splits_head).eval()
    if embeds is not None:
        fit_to_embed(model, embeds, seed=seed)
    counts = model.weights()
    source = _Source(model, whole, device, world)
    for module in [*_layers(model), model]:
        source.fill(module)
        place(module)
    return model, counts


def _agreed(told: tuple[TailorError | None, Any], world: int) -> Any:
    """What rank 0 found, on every rank; its error, raised on every rank."""
    box = [told]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    error, found = box[0]
    if error is not None:
        raise error
    return found


def _layers(model: CausalModel) -> Iterator[nn.Module]:
    """The decoder's layers, by what transformers says must stay together."""
    names = set(model.base._no_split_modules or ())
    return (module for module in model.base.get_decoder().modules() if type(module).__name__ in names)


class _Source:
    """Rank 0's weights and buffers by name, put into the others' empty network."""

    def __init__(
        self, model: CausalModel, whole: CausalModel | None, device: torch.device, world: int
    ) -> None:
        self._device, self._world = device, world
        self._values: dict[str, torch.Tensor] = {}
        if whole is not None:
            self._values = {**dict(whole.named_buffers()), **dict(whole.named_parameters())}
        self._names = {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for key, value in held.items():
                    if value is not None:
                        self._places.setdefault(id(value), []).append((held, key))

    def fill(self, module: nn.Module) -> None:
        """Give a module its weights, those that it shares with others too."""
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_meta:
                name = self._names[id(value)]
                tensor = self._receive(name, value)
                if isinstance(value, nn.Parameter):
                    tensor = nn.Parameter(tensor, requires_grad=value.requires_grad)
                for held, key in self._places[id(value)]:
                    held[key] = tensor

    def _receive(self, name: str, like: torch.Tensor) -> torch.Tensor:
        value = self._values.pop(name, None)
        if value is None:
            tensor = torch.empty(like.shape, dtype=like.dtype, device=self._device)
        else:
            tensor = value.detach().to(self._device, like.dtype, copy=True).contiguous()
            value.data = torch.empty(0, dtype=value.dtype)  # nobody needs it any longer
        if self._world > 1:
            dist.broadcast(tensor, src=0)
        return tensor
