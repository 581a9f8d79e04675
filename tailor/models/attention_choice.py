"""Choose a model's attention: the first one under which packed documents do not affect each other."""

from __future__ import annotations

from typing import Any

import torch

from tailor.errors import ModelError
from tailor.models import attention, probe, recurrence
from tailor.models.causal import CausalModel, base_of
from tailor.models.documents import Layout
from tailor.models.files import first_line
from tailor.plan.facts import unpackable
from tailor.spec.model import Model


def with_attention(
    network: Any,
    spec: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    pack: bool,
    rows: bool,
    tokens: int,
) -> CausalModel:
    """Choose the first allowed attention under which packed documents do not affect each other. rows: only attention over
    padded rows.

    Without packing, fall back to transformers' attention with one document per row. Raises ModelError.
    """
    attention.require_supported(base_of(network), spec.attention)
    if pack:
        recurrence.isolate(base_of(network))
    for name in _candidates(spec, rows):
        layout: Layout = "rows" if name in ("sdpa", "eager") else "stream"
        try:
            if name == attention.NAME:
                attention.set_attention(base_of(network))
            else:
                base_of(network).set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            if spec.attention != "auto":
                raise ModelError(
                    f"model.attention {name}: {first_line(error)}", hint="set model.attention: auto"
                ) from error
            continue
        model = CausalModel(network, layout=layout)
        if probe.packs_in_isolation(model, device, dtype, tokens=tokens):
            return model
    if pack:
        why = _why_not_isolated(base_of(network))
        raise ModelError(
            f"packed documents of {type(base_of(network)).__name__} attend to each other with every attention that was tried"
            + (f": {why}" if why else ""),
            hint="set data.pack: false",
        )
    base_of(network).set_attn_implementation(attention.stock_attention(base_of(network)))
    return CausalModel(network, layout="rows")


def _why_not_isolated(base: Any) -> str:
    """The known reason why packed documents of a model influence each other, or empty."""
    if (why := unpackable(base.config.get_text_config().to_dict())) is not None:
        return why
    if any(name.endswith(".sinks") for name, _ in base.named_parameters()):
        return "its attention has sinks, which transformers computes without the borders of documents"
    if not type(base).__module__.startswith("transformers."):
        return "its attention is the model's own code, which knows no borders of documents"
    return ""


def _candidates(spec: Model, rows: bool) -> tuple[str, ...]:
    if spec.attention != "auto":
        return (spec.attention,)
    return ("sdpa", "eager") if rows else (attention.NAME, "sdpa", "eager")
