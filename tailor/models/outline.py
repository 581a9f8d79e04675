"""Reads the structure of a base model from the model itself, which transformers builds on the meta device without weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from tailor.encode.gguf import readable
from tailor.errors import ModelError
from tailor.models import dropout, linear, own_code, scoring_head
from tailor.models.architecture import auto_class
from tailor.models.decoder import decoder_of, has_head, head_of
from tailor.models.experts.loading import quantizable
from tailor.models.experts.stacks import routers, stacks
from tailor.models.libraries import import_libraries
from tailor.models.load import require_base, without_weights
from tailor.plan.outline import NoOutline, Outline, is_routed
from tailor.printable import printable
from tailor.spec.model import Model


def build(spec: Model, *, scores: bool = False) -> Any:
    """The base on the meta device, without adapter and new tokens; `NoOutline` if transformers cannot build it here.

    scores: with a scoring head.
    Raises ModelError if the recipe's model is none, is of another kind, or has code that the user has not read.
    """
    import_libraries(adapter=spec.adapter is not None)
    from transformers import AutoConfig

    require_base(spec)
    trusted, path = own_code.granted(spec), readable(spec.path)
    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision, trust_remote_code=trusted)
        if scores:
            scoring_head.configure(config, spec)
        return without_weights(config, trusted, scores=scores)
    except ModelError:
        raise
    except Exception as error:  # transformers and a model's own code raise any
        if not trusted and own_code.untrusted(spec.path, error) is not None:
            return NoOutline("the model comes with its own code, and model.trust_remote_code is false")
        if str(error).startswith("Unrecognized configuration class"):
            raise ModelError(
                f"model.path: transformers has no {auto_class(config, scores=scores).__name__} for {spec.path} ({config.model_type})",
                hint="use a model that reads text; some that also read images or audio are of another kind",
            ) from None
        reason = printable(" ".join(str(error).split()).split(". ")[0][:200]) or type(error).__name__
        return NoOutline(f"transformers cannot build the model: {reason}")


def read(network: Any, spec: Model) -> Outline:
    """The outline of a base on the meta device. Raises ModelError if `model.base_dropout` finds no dropout."""
    from transformers.pytorch_utils import Conv1D

    decoder, head = decoder_of(network), head_of(network)
    table = network.get_input_embeddings().weight
    tied = any(weight is table for weight in head.parameters())
    used = {id(parameter) for part in (decoder, head) for parameter in part.parameters()}
    bypassed = set(linear.read_directly(network))
    targets: dict[str, tuple[int, int]] = {}
    quantized = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            targets[name] = (module.num_embeddings, module.embedding_dim)
        elif isinstance(module, nn.Linear | Conv1D):
            sizes = tuple(module.weight.shape)  # [out, in], of a Conv1D [in, out]
            targets[name] = (sizes[0], sizes[1]) if isinstance(module, Conv1D) else (sizes[1], sizes[0])
            quantized += module.weight.numel() * (module is not head and name not in bypassed)
    parameters = dict(network.named_parameters())
    quantized += sum(parameters[stack.name].numel() for stack in quantizable(network))
    return Outline(
        parameters={name: parameter.numel() for name, parameter in parameters.items()},
        used=sum(parameter.numel() for parameter in parameters.values() if id(parameter) in used),
        expert=sum(parameter.numel() for name, parameter in parameters.items() if is_routed(name)),
        table=table.numel(),
        tied=tied,
        has_head=has_head(network),
        targets=targets,
        all_linear=tuple(linear.adaptable(network)),
        quantized=quantized,
        stacks={stack.name: stack.sizes for stack in stacks(network)},
        routers=tuple(routers(network)),
        dropout=_dropout(network, spec),
    )


def _dropout(network: Any, spec: Model) -> dict[str, float]:
    config, trusted = network.config, own_code.granted(spec)

    def without(config: Any) -> Any:
        return without_weights(config, trusted, scores=scoring_head.is_scorer(network))

    if spec.base_dropout is not None:
        dropout.write(config, spec.base_dropout, without, spec.path)
    return dropout.active(config, without)
