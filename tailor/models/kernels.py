"""Liger kernels (arXiv 2410.10989) for the RMSNorm and the gated MLP of a transformers model, on CUDA.

The package patches the modules of a model. It patches RoPE in transformers' own namespace, for every model of the process,
so that kernel is left out; so is its fused loss, in place of which `loss` computes in tiles. Before a model gets kernels,
a small model of the same config is compared with and without them on the device that trains.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from tailor.errors import ModelError

LAYERS = 2
"""Layers of the model that is compared, at least. Kernels work on each layer alone."""
DOCUMENTS = (40, 9, 24)
"""Tokens of its documents. They are rows of padded length, because no kernel sees more than one token."""
TOLERANCE = 1e-4
"""Maximum difference from the plain model in float32, relative to its result (L2 norms), of hidden states and of each
gradient. In bf16 and fp16, twice the difference that the plain model has in that type is added."""
PATCHED = {"rms_norm": True, "swiglu": True, "geglu": True}
NOT_PATCHED = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def apply(base: Any) -> None:
    """Patch the modules of a transformers model. Raises ModelError if the package is missing or has nothing for the model."""
    if find_spec("liger_kernel") is None:
        raise ModelError(
            "model.kernels: liger needs the package liger-kernel on the machines that train",
            hint="pip install 'tailor[liger]', or set model.kernels: none",
        )
    library = importlib.import_module("liger_kernel.transformers.monkey_patch")
    known = library.MODEL_TYPE_TO_APPLY_LIGER_FN
    if base.config.model_type not in known or not type(base).__module__.startswith("transformers."):
        raise _refusal(base, "liger-kernel has no kernels for it")
    with _namespace_unchanged(base):
        library._apply_liger_kernel_to_instance(base, **PATCHED, **NOT_PATCHED)


def prove(config: Any, device: torch.device, dtype: torch.dtype, weights: torch.dtype) -> None:
    """Compare a small model of this config with and without kernels: hidden states, and the gradients of all weights.

    dtype: of the computation, under autocast if it is not float32; weights: dtype of the base's weights. ModelError if they
    differ, or the package is missing.
    """
    from transformers import AutoModelForCausalLM

    plain = (
        AutoModelForCausalLM.from_config(_small(config), dtype=weights, trust_remote_code=False)
        .to(device)
        .eval()
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        if parameter.dim() < 2:  # norms start at 1 or 0, where a wrong offset would not show
            noise = torch.empty(parameter.shape).uniform_(-0.3, 0.3, generator=generator)
            parameter.data.add_(noise.to(device, weights))
    patched = copy.deepcopy(plain)
    apply(patched)
    exact, rounded = _results(copy.deepcopy(plain).float(), torch.float32), _results(plain, dtype)
    try:
        found = _results(patched, dtype)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise _refusal(plain, f"its kernels fail on {device.type}: {str(error).splitlines()[0]}") from error
    for name, value in exact.items():
        allowed = TOLERANCE * value.norm() + 2 * (rounded[name] - value).norm()
        if not bool((found[name] - value).norm() <= allowed):  # also for NaN
            raise _refusal(plain, f"its kernels give another {name}")


def _small(config: Any) -> Any:
    """The config with few layers, each kind of `layer_types` among them, and few tokens."""
    small = copy.deepcopy(config)
    kinds = list(getattr(config, "layer_types", None) or [])
    layers = next((n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == set(kinds)), 0)
    small.num_hidden_layers = min(config.num_hidden_layers, max(LAYERS, layers))
    if kinds:
        small.layer_types = kinds[: small.num_hidden_layers]
    small.vocab_size, small.pad_token_id = 64, None
    return small


def _results(base: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """By name, in float32: the last hidden states [B, T, H], and the gradient of each weight of the decoder."""
    device = base.device
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (len(DOCUMENTS), max(DOCUMENTS)), generator=generator)  # int64[B, T]
    is_real = torch.arange(max(DOCUMENTS)) < torch.tensor(DOCUMENTS)[:, None]  # bool[B, T]
    cotangent = torch.randn(*ids.shape, base.config.hidden_size, generator=generator)  # [B, T, H]
    cotangent = (cotangent * is_real[..., None]).to(device)
    base.zero_grad()
    with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = base.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state  # [B, T, H]
        (hidden.float() * cotangent).sum().backward()
    gradients = {
        f"gradient of {name}": parameter.grad.float()
        for name, parameter in base.base_model.named_parameters()
        if parameter.grad is not None
    }
    return {"result": hidden.detach().float() * is_real[..., None].to(device), **gradients}


@contextmanager
def _namespace_unchanged(base: Any) -> Iterator[None]:
    """Context after which the module of the model's class is as before: other models of the process get no kernels."""
    namespace = vars(sys.modules[type(base).__module__])
    before = dict(namespace)
    try:
        yield
    finally:
        namespace.update(before)


def _refusal(base: Any, why: str) -> ModelError:
    return ModelError(
        f"model.kernels: liger cannot be used with {type(base).__name__}: {why}",
        hint="set model.kernels: none",
    )
