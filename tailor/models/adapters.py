"""Adapters: which modules get one, as a configuration for PEFT."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models import adapter_init, linear, scoring_head
from tailor.models.decoder import has_head
from tailor.models.experts import attach, low_rank
from tailor.models.experts.check import require_attached
from tailor.models.experts.packed import is_placeholder
from tailor.plan.outline import is_chosen, is_within
from tailor.spec.adapter import Adapter, matching
from tailor.spec.adapter_kinds import FEED_FORWARD, KEYS_AND_VALUES


def add_adapter(
    network: Any,
    spec: Adapter,
    *,
    mixed_precision: bool,
    rows: dict[str, list[int]] | None = None,
    unquantized: nn.Module | None = None,
) -> Any:
    """Add an adapter; returns a PeftModel. Adapter weights are float32.

    mixed_precision: training uses autocast. rows: modules of which these rows are trained too. unquantized: the base without
    quantization, for `init: loftq`. Raises ModelError if a name in the recipe matches no suitable module.
    """
    from peft import get_peft_model

    stacks = attach.chosen_stacks(network, spec)
    head, in_full = _head(network), names_in_full(network, spec)
    if spec.target_modules == "all-linear":
        # A module that is trained in full needs no adapter.
        names = [
            name
            for name in linear.adaptable(network)
            if not is_within(name, in_full) and is_chosen(name, spec)
        ]
        names = [
            name for name in names if spec.type != "ia3" or _last(name) in (*KEYS_AND_VALUES, *FEED_FORWARD)
        ]
    else:
        _check_names(network, spec.target_modules, "model.adapter.target_modules", adapted=True)
        names = [name for name in _named(network, spec.target_modules) if not is_within(name, head)]
        _check_called(network, names)
    _check_names(network, spec.modules_to_save, "model.adapter.modules_to_save")
    _check_saved(network, [name for name in in_full if name not in head])
    _check_patterns(spec, [*names, *(stack.name for stack in stacks)])
    targets = _shortest(network, names)
    if not stacks:
        _check_kind(network, spec, names)
    config = peft_config(
        spec,
        targets,
        parameters=attach.shortest(network, stacks),
        rows=rows or None,
        in_full=in_full,
        task=task_of(generates=has_head(network), scores=bool(head)),
    )
    try:
        with attach.as_named(network):
            adapted = get_peft_model(network, config)
    except (ValueError, TypeError) as error:  # e.g. a kind of module that PEFT does not support
        raise ModelError(
            f"model.adapter: {' '.join(str(error).split())}",
            hint="name the modules in model.adapter.target_modules"
            + ("" if spec.type == "lora" else ", or set type: lora"),
        ) from error
    _check_placed(adapted, names)
    require_attached(adapted.get_base_model(), stacks)
    attach.freeze_corrections(adapted)
    low_rank.install(adapted)
    adapter_init.initialize(adapted, spec, unquantized)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if mixed_precision:
        # Autocast casts the inputs. PEFT would cast every input back to float32, the dtype of the adapter weights.
        for module in adapted.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return adapted


def names_in_full(network: Any, spec: Adapter) -> list[str]:
    """The names of the modules that are trained in full beside the adapter: of the recipe, routers, and a scoring head."""
    named = [*spec.modules_to_save, *attach.chosen_routers(network, spec), *_head(network)]
    return list(dict.fromkeys(named))


def _head(network: Any) -> list[str]:
    return scoring_head.names_of(network) if scoring_head.is_scorer(network) else []


def peft_config(
    spec: Adapter,
    targets: list[str],
    *,
    parameters: Sequence[str],
    rows: dict[str, list[int]] | None,
    in_full: Sequence[str],
    task: str,
) -> Any:
    """PEFT's configuration of the adapter. targets: names of modules. parameters: names of stacks of experts. rows: see
    `add_adapter`. in_full: names of the modules that are trained in full. task: of `task_of`."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType

    kind = spec.kind
    settings = {setting: getattr(spec, key) for key, setting in kind.keys.items()}
    settings |= {
        **kind.settings,
        "target_modules": targets,
        "modules_to_save": list(in_full) or None,
    }
    if spec.type == "lora":
        settings |= {
            "init_lora_weights": adapter_init.BY_PEFT.get(spec.init, True),
            "trainable_token_indices": rows,
        }
        if parameters:
            settings["target_parameters"] = list(parameters)
    if spec.type == "ia3":
        settings["feedforward_modules"] = [name for name in targets if _last(name) in FEED_FORWARD]
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.peft_type)](task_type=task, **settings)


def task_of(*, generates: bool, scores: bool) -> str:
    """PEFT's name of what a model does. Both are False for an encoder that embeds."""
    return scoring_head.TASK if scores else "CAUSAL_LM" if generates else "FEATURE_EXTRACTION"


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _check_kind(network: Any, spec: Adapter, names: list[str]) -> None:
    """ModelError for modules on which this kind of adapter is not supported."""
    if not names and isinstance(spec.target_modules, list) and scoring_head.is_scorer(network):
        raise ModelError(
            "model.adapter.target_modules: it has only modules of the scoring head, which is trained in full",
            hint="add modules of the base model, or set model.adapter.target_modules: all-linear",
        )
    if not names:
        raise ModelError(
            f"model.adapter: {type(network).__name__} has no modules that {spec.kind.label} adapts by default",
            hint="name the modules in model.adapter.target_modules",
        )
    for name in names if spec.type != "lora" else ():
        module: Any = network.get_submodule(name)
        if isinstance(module, nn.Embedding):
            raise ModelError(
                f"model.adapter: {spec.kind.label} is not supported on {name}, which is an embedding",
                hint="name linear modules in model.adapter.target_modules, or set type: lora",
            )
        inputs = (
            module.in_features if isinstance(module, nn.Linear) else len(module.weight)
        )  # Conv1D: [in, out]
        if spec.type == "oft" and inputs % spec.oft_block_size:
            raise ModelError(
                f"model.adapter.oft_block_size: {spec.oft_block_size} does not divide the {inputs} inputs of {name}",
                hint="choose a block size that divides the inputs of every adapted module",
            )


def adapter_name(trained: str) -> str:
    """The name of a trained weight in PEFT's `adapter_model.safetensors`. trained: its name in the `CausalModel`."""
    name = trained.removeprefix("network.").replace(".modules_to_save.default.", ".").replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def _named(network: nn.Module, names: list[str]) -> list[str]:
    """Full names of the modules whose name ends with one of `names`; PEFT uses the same rule."""
    return [
        full for full, _ in network.named_modules() if any(f".{full}".endswith(f".{name}") for name in names)
    ]


def _shortest(network: nn.Module, names: list[str]) -> list[str]:
    """The last parts of the names (`q_proj`) if they match the same modules, else the full names. Keeps
    adapter_config.json short."""
    last = sorted({name.rsplit(".", 1)[-1] for name in names})
    return last if set(_named(network, last)) == set(names) else names


def _check_patterns(spec: Adapter, names: list[str]) -> None:
    """ModelError for a pattern that matches none of the adapted modules. names: of these modules."""
    for key, patterns in (("rank_pattern", spec.rank_pattern), ("alpha_pattern", spec.alpha_pattern)):
        for pattern, value in patterns.items():
            if not any(matching({pattern: value}, name, None) for name in names):
                raise ModelError(
                    f"model.adapter.{key} names {pattern}, which matches none of the modules with an adapter",
                    hint=f"choose from {', '.join(sorted({name.rsplit('.', 1)[-1] for name in names}))}",
                )


def _check_called(network: Any, names: list[str]) -> None:
    bypassed = sorted(set(linear.read_directly(network)) & set(names))
    if bypassed:
        raise ModelError(
            f"model.adapter.target_modules names {bypassed[0].rsplit('.', 1)[-1]}, but the training kernel of "
            f"{type(network).__name__} reads the weight of {bypassed[0]} directly, so an adapter on it has no effect",
            hint=_choices(network),
        )
    if found := sorted(set(linear.sharing(network)) & set(names)):
        raise ModelError(
            f"model.adapter.target_modules names {found[0].rsplit('.', 1)[-1]}, but several layers of {type(network).__name__} "
            f"share the weight of {found[0]}: an adapter of each layer could not be merged into it",
            hint=_choices(network),
        )


def _choices(network: Any) -> str:
    return f"choose from {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear.adaptable(network)}))}"


def _check_placed(adapted: Any, names: list[str]) -> None:
    """PEFT maps module names of older checkpoints to new ones. Check that the adapters are on the requested modules."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = adapted.get_base_model().named_modules()
    placed = {
        name
        for name, module in named
        if isinstance(module, BaseTunerLayer)
        and not name.endswith(".token_adapter")
        and not isinstance(module, ParamWrapper)
    }
    if odd := sorted(placed ^ set(names)):
        raise ModelError(
            f"model.adapter: PEFT did not adapt exactly the requested modules of "
            f"{type(adapted.get_base_model()).__name__}; {odd[0]}, for example, differs",
            hint="name the modules in model.adapter.target_modules",
        )


def _check_saved(network: Any, names: list[str]) -> None:
    """Check that the modules of `modules_to_save` can be trained: not quantized, and not tied to another module."""
    tables = {"embed_tokens", "wte", "lm_head"} & {name.rsplit(".", 1)[-1] for name in names}
    if tables and getattr(network.config, "tie_word_embeddings", False):
        raise ModelError(
            f"model.adapter.modules_to_save names {min(tables)}, but this model ties its embedding and its output head "
            "(tie_word_embeddings), and PEFT would train a copy of only one of them",
            hint=f"remove {min(tables)} from model.adapter.modules_to_save, or train all weights (no model.adapter)",
        )
    for name in names:
        for full, module in network.named_modules():
            if f".{full}".endswith(f".{name}") and any(
                not p.is_floating_point() or is_placeholder(p) for p in module.parameters()
            ):
                raise quantized(name)


def quantized(name: str) -> ModelError:
    """The error for a name in `modules_to_save` whose weights are quantized."""
    return ModelError(
        f"model.adapter.modules_to_save names {name}, whose weights are quantized and cannot be trained",
        hint=f"remove {name} from model.adapter.modules_to_save, so that it gets an adapter, or remove model.quantize",
    )


def _check_names(network: nn.Module, names: list[str], key: str, *, adapted: bool = False) -> None:
    """ModelError for names that match no module; if they are to be adapted, also for those of which PEFT adapts none."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, Conv1D)
    modules = {full: module for full, module in network.named_modules() if full}
    layers = {
        full.rsplit(".", 1)[-1]
        for full, module in modules.items()
        if isinstance(module, kinds[:2] + kinds[3:])
    }
    for name in names:
        matches = [module for full, module in modules.items() if f".{full}".endswith(f".{name}")]
        known = layers if adapted else layers | {full.rsplit(".", 1)[-1] for full in modules}
        near = difflib.get_close_matches(name.rsplit(".", 1)[-1], sorted(known), n=1)
        hint = f"choose from {', '.join(sorted(layers))}" + (", or all-linear" if adapted else "")
        if near and near[0] != name:
            hint = f"did you mean {near[0]}? Otherwise {hint}"
        if not matches:
            raise ModelError(
                f"{key} names {name}, but {type(network).__name__} has no module of that name", hint=hint
            )
        if adapted and not any(isinstance(module, kinds) for module in matches):
            raise ModelError(
                f"{key} names {name}, which is no linear layer of {type(network).__name__} but a {type(matches[0]).__name__}",
                hint=hint,
            )


def active_adapters(model: Any) -> tuple[str, ...]:
    """The names of the adapters that compute, none when they are disabled, or the model has none."""
    if not hasattr(model, "get_base_model"):
        return ()
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return () if layer is None or layer.disable_adapters else tuple(layer.active_adapters)
