"""Load a model for training: base, quantization, adapter or beacons, attention, and the checks of `probe`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tailor.encode.gguf import WEIGHTS, readable
from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, MODEL_INDEX
from tailor.models import (
    activations,
    attention,
    dropout,
    files,
    kernels,
    mapped,
    own_code,
    probe,
    quantization,
    recurrence,
    rope,
    scoring_head,
    visibility,
)
from tailor.models.adapters import add_adapter
from tailor.models.architecture import auto_class, from_config, without_pooler
from tailor.models.attention_choice import with_attention
from tailor.models.beacon.model import BeaconModel, beacon_model
from tailor.models.beacon.modules import add_beacons
from tailor.models.causal import CausalModel, base_of
from tailor.models.decoder import decoder_of, has_head, head_of
from tailor.models.experts.check import require_gradients
from tailor.models.experts.loading import quantizing
from tailor.models.libraries import import_libraries
from tailor.models.links import inside
from tailor.models.new_tokens import add_rows, trained_rows
from tailor.models.visibility import Rule
from tailor.plan import quantized
from tailor.spec.model import Beacon, Model
from tailor.store.scratch import scratch

DTYPES = {  # the names in transformers' configs, and those of `train.precision`
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load_for_training(
    spec: Model,
    *,
    device: torch.device,
    precision: str,
    frozen_dtype: str,
    pack: bool,
    activation_checkpointing: int,
    seed: int,
    activation_offloading: bool = False,
    tiled_mlp: bool = False,
    tokens: int = 0,
    scores: bool = False,
) -> CausalModel:
    """Load, quantize, adapt and check a model. Trained weights are float32, frozen ones `frozen_dtype`.

    pack: documents share rows, so that they must be isolated. activation_checkpointing: checkpoint every n-th decoder
    layer; 0 or False for none. tokens: maximum of a forward pass. scores: with a scoring head, whose pairs are padded rows.
    Raises ModelError.
    """
    torch.manual_seed(seed)
    network = load_network(spec, dtype=base_dtype(spec, frozen_dtype), device=device, scores=scores)
    if spec.beacon is not None:
        return _with_beacons(network, spec, spec.beacon, DTYPES[precision], activation_checkpointing, seed)
    if spec.kernels == "liger":
        kernels.prove(network.config, device, DTYPES[precision], base_dtype(spec, frozen_dtype))
        kernels.apply(network)
    network = adapt(
        network,
        spec,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        activation_offloading=activation_offloading,
        tiled_mlp=tiled_mlp,
        seed=seed,
    )
    return prove(
        network,
        spec,
        device=device,
        precision=precision,
        pack=pack,
        rows=scores,
        tokens=tokens,
    )


def base_dtype(spec: Model, frozen_dtype: str) -> torch.dtype:
    """The dtype to load the base in: `frozen_dtype` if it is frozen, float32 if it is trained."""
    return DTYPES[frozen_dtype] if spec.adapter or spec.beacon else torch.float32


def adapt(
    network: Any,
    spec: Model,
    *,
    precision: str,
    activation_checkpointing: int,
    seed: int,
    activation_offloading: bool = False,
    tiled_mlp: bool = False,
) -> Any:
    """Add the adapter, activation checkpointing and tiling to a network, and freeze unused weights."""
    if spec.adapter is not None:
        torch.manual_seed(
            seed
        )  # so that the adapter's initial weights do not depend on how the base was loaded
        network = add_adapter(
            network,
            spec.adapter,
            rows=trained_rows(network, spec) if spec.add_tokens else {},
            mixed_precision=precision != "fp32",
            unquantized=_unquantized(spec, network) if spec.adapter.init == "loftq" else None,
        )
    if activation_checkpointing:
        activations.checkpoint_layers(
            base_of(network), every=activation_checkpointing, offload=activation_offloading
        )
        if spec.adapter is not None:
            # A checkpointed layer has gradients only if its input requires them; the embedding below is frozen.
            base_of(network).enable_input_require_grads()
    if tiled_mlp:
        activations.tile_feed_forward(base_of(network))
    _freeze_unused(network)
    return network.eval()


def prove(
    network: Any,
    spec: Model,
    *,
    device: torch.device,
    precision: str,
    pack: bool,
    rows: bool = False,
    tokens: int = 0,
) -> CausalModel:
    """Choose the first attention that passes the checks, and run the other checks of `probe`. Raises ModelError.

    device: where the weights are. rows: with an attention over padded rows. tokens: maximum of a forward pass in training.
    """
    dtype = DTYPES[precision]
    with torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32"):
        model = with_attention(network, spec, device, dtype, pack=pack, rows=rows, tokens=tokens)
        model.splits_head = not has_head(model.base) or probe.head_is_separate(model, device)
        if not probe.tiling_is_exact(model, device, dtype):
            raise activations.no_tiles(model.base)
        if spec.adapter is not None and (unused := probe.unused_adapters(model, device)):
            raise ModelError(
                f"model.adapter: the forward pass of {type(model.base).__name__} does not use the adapter on "
                f"{unused[0]}, so it would not train",
                hint="name other modules in model.adapter.target_modules",
            )
        if spec.adapter is not None and spec.adapter.experts is True:
            require_gradients(model.base)
    return model


def _with_beacons(
    network: Any, spec: Model, settings: Beacon, compute: torch.dtype, checkpointing: bool, seed: int
) -> BeaconModel:
    """The frozen base with beacons, under transformers' attention, which supports the cache that beacons need."""
    torch.manual_seed(seed)
    attention.require_supported(network, spec.attention)
    add_beacons(network, settings)
    if any(rule.form != Rule().form for rule in visibility.learned(network).values()):
        raise ModelError(
            f"model.beacon: {type(network).__name__} does not support beacons: its layers do not attend to all earlier "
            "tokens, so they would not see the memory",
            hint="remove model.beacon, or use another base",
        )
    if checkpointing:
        layers = activations.decoder_layers(network)
        if not all(hasattr(type(layer), "_can_checkpoint_with_cache") for layer in layers):
            raise ModelError(
                "model.beacon: the installed transformers does not pass the cache to checkpointed layers",
                hint="set train.activation_checkpointing: false, or install transformers 5.23",
            )
        activations.checkpoint_layers(network, every=1, offload=False)
    auto = attention.stock_attention(network)
    network.set_attn_implementation(auto if spec.attention == "auto" else spec.attention)
    network.eval()
    with torch.autocast(network.device.type, dtype=compute, enabled=compute != torch.float32):
        return beacon_model(network, seed=seed)


def skeleton(
    spec: Model, *, frozen_dtype: str, with_kernels: bool = False, scores: bool = False, **settings: Any
) -> Any:
    """The network with its adapter on the meta device: names and shapes of the weights, without values.

    with_kernels: patch the modules with `model.kernels`, for a network that computes on CUDA later. scores: with a
    scoring head. settings: keyword arguments of `adapt`.
    """
    meta = torch.device("meta")
    with meta:
        network = load_network(
            spec, dtype=base_dtype(spec, frozen_dtype), device=meta, empty=True, scores=scores
        )
        if with_kernels:
            kernels.apply(network)
        return adapt(network, spec, **settings)


def load_network(
    spec: Model, *, dtype: torch.dtype, device: torch.device, empty: bool = False, scores: bool = False
) -> Any:
    """Load the base model with transformers, quantized if the recipe says so; with random weights for `model.init: random`.

    empty: build the architecture only, for the meta device. scores: with a scoring head, whose weights are random if the base
    has none. Raises ModelError.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    import_libraries(adapter=spec.adapter is not None)
    path = readable(spec.path)
    gguf = path != spec.path
    if spec.quantize is not None and (spec.dequantize or gguf) and not empty:
        return _quantized_again(spec, dtype=dtype, device=device)
    require_base(spec)
    if (Path(path) / MODEL_INDEX).is_file():
        files.indexed_files(Path(path))
    trusted = own_code.granted(spec)
    common: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": trusted}
    try:
        config = AutoConfig.from_pretrained(path, **common)
        recurrence.keep_scale(config)
        if scores:
            scoring_head.configure(config, spec)
        if spec.rope is not None:
            rope.write(config, spec.rope, spec.path)
        if spec.base_dropout is not None:
            dropout.write(
                config,
                spec.base_dropout,
                lambda config: without_weights(config, trusted, scores=scores),
                spec.path,
            )
        stored = quantized.method(config.to_dict())
        if spec.init == "random" or empty:
            quantization.forget(config)
            network = from_config(config, scores=scores, dtype=dtype, trust_remote_code=trusted)
            return _ready(network.to(device), spec, empty=empty)
        bare = partial(without_weights, config, trusted, scores=scores)
        settings = quantization.when_loading(config, spec, dtype, bare, gguf=gguf)
        with quantizing(spec.quantize, bare):
            network, loaded = auto_class(config, scores=scores).from_pretrained(
                path,
                config=config,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below with names and shapes
                quantization_config=settings,
                **({"gguf_file": WEIGHTS} if gguf else {}),
                **common,
            )
        own = scoring_head.weights_of(network) if scores else set()
        if wrong := sorted(key for key in loaded["mismatched_keys"] if key[0] not in own):
            name, stored, expected = wrong[0]
            raise ModelError(
                f"model.path {spec.path}: {name} has the shape {tuple(stored)} in the weights, and {tuple(expected)} in config.json",
                hint="use the config.json and the weights of the same model",
            )
        without_pooler(network)
        kept = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        if missing := sorted(
            kept.intersection(loaded["missing_keys"]) - own
        ):  # transformers would initialize them randomly
            raise ModelError(
                f"model.path {spec.path}: the weights of {type(network).__name__} lack {len(missing)} tensors, for "
                f"example {missing[0]}",
                hint="set model.path to a complete model",
            )
        network = quantization.as_in_training(network, spec, dtype, stored)
        mapped.release_unused(network)
        return _ready(network, spec)
    except SafetensorError as error:
        raise ModelError(
            f"model.path {spec.path}: the weights are damaged: {files.first_line(error)}",
            hint="copy the model again",
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if not trusted and (refusal := own_code.untrusted(f"model.path {spec.path}", error)) is not None:
            raise refusal from error
        # The rest of the message refers to a report that is not shown.
        if "automatic conversion of the weights" in str(error):
            raise ModelError(
                f"model.path {spec.path}: its stored weights cannot be converted: tensors of the quantization format are "
                "missing, or have other shapes",
                hint="copy the model again",
            ) from error
        raise ModelError(
            f"model.path {spec.path}: the model could not be loaded: {files.first_line(error)}",
            hint="check the path, the revision and config.json; weights must be safetensors",
        ) from error


def save_plain(spec: Model, *, dtype: torch.dtype, folder: Path) -> None:
    """Write the base as an ordinary model with weights in `dtype`, dequantized if they are stored quantized. Raises ModelError.

    The model is in host memory once. Without the tokenizer.
    """
    plain = spec.model_copy(update={"quantize": None, "dequantize": True, "rope": None, "add_tokens": []})
    network = load_network(plain, dtype=dtype, device=torch.device("cpu"))
    network.save_pretrained(folder)
    base = files.find_folder(spec.path, spec.revision, trust_remote_code=own_code.granted(spec))
    for code in inside(sorted(base.glob("*.py")), base, []):
        shutil.copyfile(code, folder / code.name)


def _quantized_again(spec: Model, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The base, dequantized and then quantized as `model.quantize` says. transformers cannot do both in one call."""
    with scratch() as folder:
        save_plain(spec, dtype=dtype, folder=folder)
        plain = {"path": str(folder), "revision": None, "dequantize": False, "add_tokens": []}
        network = load_network(spec.model_copy(update=plain), dtype=dtype, device=device)
    if spec.add_tokens:
        add_rows(network, spec)
    return network


def require_base(spec: Model) -> None:
    """ModelError if `model.path` is an adapter: transformers would load the model that its configuration names instead."""
    if (Path(spec.path) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"model.path {spec.path}: the folder has an {ADAPTER_CONFIG}, so it is an adapter and not a model",
            hint="set model.path to the base model, and model.warm_start to the adapter",
        )


def without_weights(config: Any, trusted: bool, *, scores: bool = False) -> Any:
    """The network of a transformers config on the meta device: names and shapes of its weights. trusted: its own code may run.
    scores: with a scoring head."""
    with torch.device("meta"):
        return from_config(config, scores=scores, trust_remote_code=trusted)


def _ready(network: Any, spec: Model, *, empty: bool = False) -> Any:
    if spec.rope is not None and not empty:
        rope.prove(network, spec.rope)
    rope.forget(network)
    if spec.add_tokens:
        add_rows(network, spec)
    return network


def _freeze_unused(network: Any) -> None:
    """Freeze weights that no text token uses (a vision tower's): DDP waits for a gradient of each trained weight."""
    base = base_of(network)
    used = {id(p) for part in (decoder_of(base), head_of(base)) for p in part.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _unquantized(spec: Model, network: Any) -> Any:
    """The base without quantization, in host memory and in the dtype that the quantized one was made from. None on the
    meta device."""
    if network.device.type == "meta":
        return None
    whole = spec.model_copy(update={"quantize": None})
    return load_network(whole, dtype=network.dtype, device=torch.device("cpu"))
