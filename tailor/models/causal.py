"""A causal language model as the methods see it: hidden states of a micro-batch, and the output head."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tailor.models import attention
from tailor.models.documents import Layout, TokenBatch
from tailor.models.loss import (
    document_cross_entropy,
    summed_cross_entropy,
    summed_cross_entropy_and_hits,
)
from tailor.models.router import Router

T = TypeVar("T")


def base_of(network: Any) -> Any:
    """The transformers model, inside PEFT's wrapper if there is one."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


class CausalModel(nn.Module):
    """Wraps a transformers model (or PEFT's wrapper of one).

    `splits_head` says that logits are exactly `head(hidden)`, which is proven at load; where it is not
    so (soft caps, scaled logits), the model's own forward gives the logits and nothing is tiled.
    """

    projection: nn.Linear | None
    """Between pooled states and embeddings, for a method that trains one."""

    def __init__(self, network: Any, *, layout: Layout, splits_head: bool = True) -> None:
        super().__init__()
        self.network = network
        self.projection = None
        self.layout: Layout = layout
        self.splits_head = splits_head

    @property
    def base(self) -> Any:
        """The transformers model, inside PEFT's wrapper if there is one."""
        return base_of(self.network)

    @property
    def device(self) -> torch.device:
        return self.base.get_input_embeddings().weight.device

    @property
    def head(self) -> nn.Module:
        head = self.base.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(self, *arguments)`. As a module's forward it is where a strategy brings weights within reach."""
        return function(self, *arguments)

    def weights(self) -> tuple[int, int]:
        """How many weights are trained, and how many there are. A 4-bit weight counts as one."""
        counts = [(_count(parameter), parameter.requires_grad) for parameter in self.parameters()]
        return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)

    @property
    def router(self) -> Router | None:
        """What the base's configuration asks for the balance of its experts."""
        return Router.of(self.base.config.get_text_config())

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Last hidden states, [B, T, H]."""
        return self.base.get_decoder()(**self.inputs(batch)).last_hidden_state

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """Logits by the model's own forward, [B, T, V]."""
        return self.base(**self.inputs(batch)).logits

    def training_loss(self, batch: TokenBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the supervised tokens' losses, a float32 scalar with a graph.

        With it, where the model balances its experts, the weighted balance (`Router.loss`), which is also given
        without its weight and graph as `router_loss`.
        """
        router = self.router
        if router is None:
            return self.next_token_loss(batch), {}
        out = self._outputs(batch, output_router_logits=True)
        balance = router.loss(out.router_logits, batch)
        loss = summed_cross_entropy(*self._at_predictions(batch, out))
        return loss + router.weight * balance, {"router_loss": balance.detach()}

    def next_token_loss(self, batch: TokenBatch) -> torch.Tensor:
        """Sum of the supervised tokens' losses, a float32 scalar with a graph."""
        return summed_cross_entropy(*self.at_predictions(batch))

    def next_token_loss_and_hits(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same sum without a graph, and how many supervised tokens are the model's first choice."""
        return summed_cross_entropy_and_hits(*self.at_predictions(batch))

    def at_predictions(self, batch: TokenBatch) -> tuple[torch.Tensor, nn.Module, torch.Tensor]:
        """What the head is given at the predicting positions, the head, and the targets."""
        return self._at_predictions(batch, self._outputs(batch))

    def log_probabilities(self, batch: TokenBatch) -> torch.Tensor:
        """Log-probability of each document's supervised tokens together, float32[documents], with a graph."""
        return -document_cross_entropy(*self.at_predictions(batch), batch.document, len(batch.supervised))

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Without gradients and dropout, for numbers that the training only looks at."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train(was_training)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base as it was loaded, also where the adapter trains whole modules beside it."""
        # PEFT's own context also turns the adapter's requires_grad off and on, in the midst of data parallelism.
        switched = [module for module in self.network.modules() if hasattr(module, "_disable_adapters")]
        assert switched or not hasattr(self.network, "peft_config")
        try:
            for module in switched:
                module._disable_adapters = True
            yield
        finally:
            for module in switched:
                module._disable_adapters = False

    def _outputs(self, batch: TokenBatch, **options: Any) -> Any:
        """What transformers returns, with hidden states or logits as `splits_head` says."""
        forward = self.base.get_decoder() if self.splits_head else self.base
        return forward(**self.inputs(batch), **options)

    def _at_predictions(self, batch: TokenBatch, out: Any) -> tuple[torch.Tensor, nn.Module, torch.Tensor]:
        """What the head is given at the predicting positions, the head, and the targets."""
        if self.splits_head:
            return out.last_hidden_state.flatten(0, 1)[batch.predicting], self.head, batch.targets
        logits = out.logits
        return logits.flatten(0, 1)[batch.predicting], _Logits(logits.shape[-1]), batch.targets

    def inputs(self, batch: TokenBatch) -> dict[str, Any]:
        """A micro-batch in the words of transformers."""
        # With a cache, transformers takes a pack for one document.
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if "position_ids" in inspect.signature(type(self.base.get_decoder()).forward).parameters:
            inputs["position_ids"] = batch.position_ids
        if batch.documents is not None and self.base.config._attn_implementation == attention.NAME:
            inputs["documents"] = batch.documents
        elif batch.documents is not None:
            offsets, longest = batch.documents.offsets, batch.documents.longest
            inputs |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets}
            inputs |= {"max_length_q": longest, "max_length_k": longest}
        return inputs


def _count(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # two 4-bit weights stand in a byte
    return parameter.numel() if packed is None else int(packed.shape.numel())


class _Logits(nn.Module):
    """The head of a model whose hidden states already are logits."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
