"""Load a model sharded over the workers (FSDP, ZeRO-3): only rank 0 ever has the full weights, and in host memory.

Every worker builds the network on the meta device. Rank 0 loads the model in host memory, adds the adapter, runs the
checks, and broadcasts the weights one tensor at a time. After each decoder layer, every worker shards the layer and keeps
its part, so that a GPU holds at most one full layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tailor.errors import TailorError
from tailor.models import attention, kernels, prefix_lm, recurrence, visibility
from tailor.models.causal import CausalModel, Parameters, base_of
from tailor.models.decoder import decoder_of
from tailor.models.embedding.embedder import fit_to_embed, prove_embedding, prove_prefix_lm
from tailor.models.load import DTYPES, adapt, base_dtype, load_network, prove, skeleton
from tailor.spec.methods.base import EmbeddingMethod
from tailor.spec.model import Model

HOST = torch.device("cpu")
ShardModule = Callable[[nn.Module], None]
"""Shards a module that has its full weights: this worker's part of them remains."""


def load_sharded(
    spec: Model,
    shard: ShardModule,
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
    tokens: int = 0,
    embeds: EmbeddingMethod | None = None,
    prefix: bool = False,
    scores: bool = False,
) -> tuple[CausalModel, Parameters]:
    """The sharded model, and its numbers of parameters before sharding. A collective call.

    tokens: maximum of a forward pass. embeds: an embedding method, whose projection is added and whose attention is checked. prefix: it generates as a prefix LM. scores: with a scoring head. Host memory on rank 0: the full
    model once, in the dtype that it is trained with. Raises the same ModelError on every rank.
    """
    dtype = base_dtype(spec, frozen_dtype)
    full: CausalModel | None = None
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
            loaded = adapt(load_network(spec, dtype=dtype, device=HOST, scores=scores), spec, **settings)
            full = prove(
                loaded,
                spec,
                device=HOST,
                precision=precision,
                pack=pack,
                rows=scores,
                tokens=tokens,
            )
            if embeds is not None:
                fit_to_embed(full, embeds, seed=seed)
                prove_embedding(full, embeds, precision)
            if prefix:
                prove_prefix_lm(full, precision)
        except TailorError as raised:
            error = raised  # on every rank, below: the others would wait for the broadcast
    checked = None
    if full is not None:
        implementation, rules = full.base.config._attn_implementation, visibility.rules_of(full.base)
        checked = (full.layout, full.splits_head, implementation, rules)
    layout, splits_head, implementation, rules = _from_rank_0((error, checked), world)
    attention.register()
    if spec.kernels == "liger":
        _prove_kernels(spec, device, DTYPES[precision], dtype, world)
    network = skeleton(
        spec, frozen_dtype=frozen_dtype, with_kernels=spec.kernels == "liger", scores=scores, **settings
    )
    if pack:
        recurrence.isolate(base_of(network))
    base_of(network).set_attn_implementation(implementation)
    visibility.set_rules(base_of(network), rules)
    model = CausalModel(network, layout=layout, splits_head=splits_head).eval()
    if embeds is not None:
        fit_to_embed(model, embeds, seed=seed)
    if prefix:
        prefix_lm.enable(model.base)
    counts = model.weights()
    source = _WeightSource(model, full, device, world)
    for module in [*_layers(model), model]:
        source.fill(module)
        shard(module)
    return model, counts


def _from_rank_0(result: tuple[TailorError | None, Any], world: int) -> Any:
    """The value of rank 0's (error, value) on every rank; or raises rank 0's error on every rank."""
    results = [result]
    if world > 1:
        dist.broadcast_object_list(results, src=0)
    error, value = results[0]
    if error is not None:
        raise error
    return value


def _prove_kernels(
    spec: Model, device: torch.device, dtype: torch.dtype, weights: torch.dtype, world: int
) -> None:
    """Compare the kernels on this worker's device: rank 0's checks run in host memory, without them. A collective call."""
    from transformers import AutoConfig

    error: TailorError | None = None
    try:
        kernels.prove(
            AutoConfig.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=False),
            device,
            dtype,
            weights,
        )
    except TailorError as raised:
        error = raised  # raised below, on every rank
    errors = [error]
    if world > 1:
        errors = [None] * world
        dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found


def _layers(model: CausalModel) -> Iterator[nn.Module]:
    """The decoder layers: the outermost modules that transformers must not split over devices (`_no_split_modules`).

    Layers that share weights with others are none (Zamba's attention), because a weight belongs to one FSDP module: that of
    the model has theirs.
    """
    names = set(model.base._no_split_modules or ())
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))

    def within(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            weights = (weight for part in child.modules() for weight in part.parameters(recurse=False))
            if type(child).__name__ in names and Counter(map(id, weights)).items() <= owners.items():
                yield child
            else:
                yield from within(child)

    return within(decoder_of(model.base))


class _WeightSource:
    """Fills a network on the meta device with the weights and buffers of rank 0, by name."""

    def __init__(
        self, model: CausalModel, full: CausalModel | None, device: torch.device, world: int
    ) -> None:
        self._device, self._world = device, world
        self._values: dict[str, torch.Tensor] = {}
        if full is not None:
            self._values = {**dict(full.named_buffers()), **dict(full.named_parameters())}
        self._names = {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
        # Tied weights have several owners.
        self._owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for key, value in tensors.items():
                    if value is not None:
                        self._owners.setdefault(id(value), []).append((tensors, key))

    def fill(self, module: nn.Module) -> None:
        """Fill a module's weights and buffers. A tied weight is filled in all modules that share it. A collective call."""
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_meta:
                name = self._names[id(value)]
                tensor = self._receive(name, value)
                if isinstance(value, nn.Parameter):
                    tensor = nn.Parameter(tensor, requires_grad=value.requires_grad)
                for tensors, key in self._owners[id(value)]:
                    tensors[key] = tensor

    def _receive(self, name: str, like: torch.Tensor) -> torch.Tensor:
        value = self._values.pop(name, None)
        if value is None:
            tensor = torch.empty(like.shape, dtype=like.dtype, device=self._device)
        else:
            tensor = value.detach().to(self._device, like.dtype, copy=True).contiguous()
            value.data = torch.empty(
                0, dtype=value.dtype
            )  # frees rank 0's host memory as the weights are broadcast
        if self._world > 1:
            dist.broadcast(tensor, src=0)
        return tensor
