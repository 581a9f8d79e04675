"""The causal language model that the methods train: hidden states of a micro-batch, the output head and the losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from tailor.models import attention, prefix_lm, segments
from tailor.models.decoder import decoder_of, head_of, is_encoder
from tailor.models.documents import Layout, TokenBatch
from tailor.models.loss import (
    document_cross_entropy,
    summed_cross_entropy,
    summed_cross_entropy_and_hits,
    summed_loss,
)
from tailor.models.neftune import noisy_embeddings
from tailor.models.router import Router
from tailor.models.segments import Segments
from tailor.plan import encoders
from tailor.plan.facts import ModelFacts
from tailor.plan.outline import is_routed
from tailor.spec.methods.base import NO_TERMS, LossTerms

T = TypeVar("T")


def base_of(network: Any) -> Any:
    """The transformers model, inside PEFT's wrapper if there is one."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


class Parameters(NamedTuple):
    """Numbers of parameters of a model."""

    trained: int
    total: int
    active: int
    """Those that a token uses: without the experts that it is not routed to."""


class CausalModel(nn.Module):
    """Wraps a transformers model or PEFT's wrapper of one.

    splits_head: True if the logits are exactly `head(hidden)`, which is checked at load. If not (soft caps, scaled logits),
    the model's own forward pass computes the logits, and the loss is not tiled.
    """

    projection: nn.Linear | None
    """Linear layer from pooled hidden states to embeddings, for a method that trains one."""

    def __init__(self, network: Any, *, layout: Layout, splits_head: bool = True) -> None:
        super().__init__()
        self.network = network
        self.projection = None
        self.layout: Layout = layout
        self.splits_head = splits_head
        self.shares_prefixes = False
        """Whether two documents may share the tokens that both begin with, as `probe.prefixes_are_shareable` finds."""
        self.router: Router | None = Router.of(self.base.config.get_text_config())
        """The losses of the routers of a mixture of experts. None without."""

    @property
    def base(self) -> Any:
        """The transformers model, inside PEFT's wrapper if there is one."""
        return base_of(self.network)

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def head(self) -> nn.Module:
        """The output head; a module without weights for an encoder."""
        return head_of(self.base)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function(self, *arguments)`. DDP, FSDP and DeepSpeed hook into a module's forward, so that every computation
        must go through it: it is where they gather weights."""
        return function(self, *arguments)

    def weights(self) -> Parameters:
        """The numbers of parameters. A 4-bit parameter counts as one, not as half a byte."""
        facts = ModelFacts.from_config(self.base.config.to_dict())
        trained = total = experts = 0
        for name, parameter in self.named_parameters():
            count = _count(parameter)
            total += count
            trained += count * parameter.requires_grad
            experts += count * is_routed(name)
        return Parameters(
            trained, total, total - experts * (facts.experts - facts.active_experts) // facts.experts
        )

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Last hidden states, [B, T, H]."""
        return decoder_of(self.base)(**self.inputs(batch)).last_hidden_state

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """Logits from the model's own forward pass, [B, T, V]."""
        return self.base(**self.inputs(batch)).logits

    def training_loss(
        self, batch: TokenBatch, terms: LossTerms = NO_TERMS
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss to train with, a float32 scalar with a graph, and statistics without a graph.

        The loss is the next-token loss with its terms, summed over supervised tokens (`loss.summed_loss`). The losses of the
        routers are added (`router`); the statistics have them without their weights.
        """
        if self.router is None:
            return summed_loss(*self.at_predictions(batch), terms)
        out = self._outputs(batch, output_router_logits=True)
        routers = self.router.losses(out.router_logits, batch, batch.supervised)
        loss, parts = summed_loss(*self._at_predictions(batch, out), terms)
        return loss + routers.weighted, {**parts, **routers.statistics}

    def answers(
        self, batch: TokenBatch, documents_per_unit: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """`log_probabilities` of the trained model, with the losses of its routers as of `with_routers`.

        documents_per_unit: how many documents the method's loss counts as one.
        """

        def compute(**options: Any) -> tuple[torch.Tensor, Any]:
            out = self._outputs(batch, **options)
            predictions = self._at_predictions(batch, out)
            return -document_cross_entropy(*predictions, batch.document, len(batch.supervised)), out

        return self.with_routers(batch, torch.full(batch.supervised.shape, 1 / documents_per_unit), compute)

    def with_routers(
        self, batch: TokenBatch, units: torch.Tensor, compute: Callable[..., tuple[torch.Tensor, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """(the tensor of `compute`, the weighted loss of the routers, statistics of that loss).

        compute: called with options of the decoder, returns a tensor and the decoder's output. units: [D], the weight of each
        document in the routers' loss (`Router.losses`). Without gradients or a router, that loss is 0 and has no statistics.
        """
        if self.router is None or not torch.is_grad_enabled():
            return compute()[0], torch.zeros((), device=batch.input_ids.device), {}
        found, out = compute(output_router_logits=True)
        return found, *self.router.losses(out.router_logits, batch, units.to(batch.input_ids.device))

    def next_token_loss(self, batch: TokenBatch) -> torch.Tensor:
        """Cross-entropy summed over the supervised tokens, a float32 scalar with a graph."""
        return summed_cross_entropy(*self.at_predictions(batch))

    def next_token_loss_and_hits(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same sum without a graph, and the number of supervised tokens with the largest logit (int64 scalar)."""
        return summed_cross_entropy_and_hits(*self.at_predictions(batch))

    def at_predictions(self, batch: TokenBatch) -> tuple[torch.Tensor, nn.Module, torch.Tensor]:
        """(hidden states [S, H] at the predicting positions, head, targets int64[S]).

        Without `splits_head`: (logits [S, V], a head that returns its input, targets).
        """
        return self._at_predictions(batch, self._outputs(batch))

    def log_probabilities(self, batch: TokenBatch) -> torch.Tensor:
        """Log-probability of each document's supervised tokens, summed per document: float32[D], with a graph."""
        return -document_cross_entropy(*self.at_predictions(batch), batch.document, len(batch.supervised))

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Context without gradients and dropout, e.g. for log-probabilities under the reference model."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train(was_training)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Context in which the network computes as the base does, without LoRA updates and modules_to_save."""
        # Not PEFT's own `disable_adapter`: it also switches requires_grad, which DDP does not allow between its passes.
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
        """Output of transformers: of the decoder (hidden states) with `splits_head`, of the whole model (logits) without."""
        forward = decoder_of(self.base) if self.splits_head else self.base
        with noisy_embeddings(self.base, batch.noise):
            return forward(**self.inputs(batch), **options)

    def _at_predictions(self, batch: TokenBatch, out: Any) -> tuple[torch.Tensor, nn.Module, torch.Tensor]:
        """As `at_predictions`, from an output of `_outputs`."""
        if self.splits_head:  # [B, T, H] -> [S, H]
            return out.last_hidden_state.flatten(0, 1)[batch.predicting], self.head, batch.targets
        logits = out.logits  # [B, T, V]
        return logits.flatten(0, 1)[batch.predicting], _Logits(logits.shape[-1]), batch.targets

    def inputs(
        self, batch: TokenBatch, parts: Segments | None = None, *, widen: bool = False
    ) -> dict[str, Any]:
        """A micro-batch as keyword arguments of a transformers model.

        parts: segments of the documents with different attention. By default, the prompts of sequences to generate with a
        prefix LM. widen: ignore sliding windows in them. ValueError if the model's attention does not support segments.
        """
        if parts is None and batch.pool is None and prefix_lm.is_enabled(self.base):
            parts = segments.prompt_segments(batch)
        # With a cache, transformers would treat a pack as one document.
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if not is_encoder(self.base):
            inputs["use_cache"] = False
        else:  # its attention is bidirectional: it would also attend to the padding
            inputs["is_causal"] = False
            if batch.documents is None:
                inputs["attention_mask"] = (batch.token_document >= 0).long()
        if "position_ids" in inspect.signature(type(decoder_of(self.base)).forward).parameters:
            first = encoders.first_position(self.base.config.to_dict())
            inputs["position_ids"] = batch.position_ids + first if first else batch.position_ids
        if batch.documents is not None and self.base.config._attn_implementation == attention.NAME:
            inputs["documents"] = batch.documents
            if parts is not None:
                inputs |= {"segments": parts, "widen_window": widen}
        elif parts is not None:
            if batch.documents is not None:
                raise ValueError(f"{self.base.config._attn_implementation} has no segments")
            inputs |= segments.inputs(self.base, batch, parts, widen=widen)
        elif batch.documents is not None:
            offsets, longest = batch.documents.offsets, batch.documents.longest
            inputs |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets}
            inputs |= {"max_length_q": longest, "max_length_k": longest}
        elif batch.skips:  # transformers would start a new document at each skip, unless there is a mask
            inputs["attention_mask"] = (batch.token_document >= 0).long()
        return inputs


def _count(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # two 4-bit parameters share a byte
    return parameter.numel() if packed is None else int(packed.shape.numel())


class _Logits(nn.Module):
    """Identity head: its input is the logits already."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
