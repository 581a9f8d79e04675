"""Conversions of values that no list of pairs can express. Each one is named by the rows that use it.

A conversion gets the draft and an argument, and sets keys of the draft. It returns a `Verdict` if the value becomes no
key, or a remark.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import isfunction, signature

from tailor.spec.moving import axolotl_sources, components, mixtures, sources
from tailor.spec.moving.draft import Argument, Draft, as_list, boolean, mapping, number
from tailor.spec.trainers.rows import OFF, Verdict, no, refuse, skip

Conversion = Callable[[Draft, Argument], "Verdict | str | None"]

TENSORBOARD = "TensorBoard files are always written"
_STEPS = "the number of steps of an epoch is not known here"


def unclear(draft: Draft, argument: Argument) -> Verdict:
    row = draft.trainer.rows[argument.name]
    return no(f"write {' or '.join(row.keys)} yourself")


def names(draft: Draft, argument: Argument) -> Verdict | None:
    found = as_list(argument.value)
    if not found:
        return skip("empty")
    draft.put("model.adapter.modules_to_save", found, argument)
    return None


def modules(draft: Draft, argument: Argument) -> Verdict | str | None:
    key = "model.adapter.target_modules"
    value = argument.value
    if str(value).strip().lower() in ("all", "all-linear", "['all']", "all_linear"):
        draft.put(key, "all-linear", argument)
        return None
    found = as_list(value)
    if found in (["all"], ["all-linear"]):
        draft.put(key, "all-linear", argument)
        return None
    if any(re.search(r"[\\()\[\]|*^$+?]", name) for name in found):
        return no(
            "a regular expression: model.adapter.target_modules is a list of names, and all-linear without one"
        )
    if draft.values.get(key) == "all-linear":
        return skip("all linear modules get an adapter")
    draft.put(key, list(dict.fromkeys(found)), argument)
    return None


def projections(draft: Draft, argument: Argument) -> Verdict | str | None:
    found = [name for name in as_list(argument.value) if name in ("q", "k", "v")]
    draft.put("model.beacon.projections", found or ["q", "k", "v"], argument)
    return "beacons have no output projection of their own" if "o" in as_list(argument.value) else None


def numbers(draft: Draft, argument: Argument) -> Verdict | str | None:
    key = draft.trainer.rows[argument.name].keys[0]
    found = [value for value in map(number, as_list(argument.value)) if value is not None]
    distinct = list(dict.fromkeys(found))
    draft.put(key, distinct, argument)
    return "each ratio is equally likely" if len(distinct) < len(found) else None


def adapter(draft: Draft, argument: Argument) -> Verdict | str | None:
    kind = str(argument.value).strip().lower()
    if boolean(argument.value) is not None:
        kind = "lora" if boolean(argument.value) else "full"
    if kind in ("none", "", "null"):
        kind = "full"
    if kind == "freeze":
        return refuse("freezing parts of the base is not supported; use model.adapter, or train all weights")
    if kind not in ("full", "lora", "qlora", "oft", "loha", "lokr", "ia3", "vera", "dora", "llama-adapter"):
        return refuse("this kind of adapter is not available")
    draft.put("=adapter", kind, argument)
    return None


def not_adapter(draft: Draft, argument: Argument) -> None:
    draft.put("=adapter", "full" if boolean(argument.value) else "lora", argument)


def checkpointing(draft: Draft, argument: Argument) -> Verdict | str | None:
    key = "train.activation_checkpointing"
    value = argument.value
    if str(value).lower() in ("offload", "offload_disk", "unsloth", "cpu"):
        draft.put(key, True, argument)
        draft.put("train.activation_offloading", True, argument)
        return None
    on = boolean(value)
    draft.put(key, bool(on) if on is not None else True, argument)
    return None


def schedule_arguments(draft: Draft, argument: Argument) -> Verdict | str | None:
    known = {
        "min_lr": "optim.min_learning_rate",
        "num_cycles": "optim.cycles",
        "num_decay_steps": "optim.decay_steps",
    }
    rest = []
    for name, value in mapping(argument.value).items():
        if name == "min_lr_rate":
            draft.put("=min_ratio", number(value), argument)
        elif name in known:
            draft.put(known[name], number(value), argument)
        else:
            rest.append(str(name))
    if not mapping(argument.value):
        return skip("empty")
    return f"without {', '.join(rest)}" if rest else None


def minimum_ratio(draft: Draft, argument: Argument) -> Verdict | str | None:
    draft.put("=min_ratio", number(argument.value), argument)
    return None


def embedding_rate(draft: Draft, argument: Argument) -> Verdict | str | None:
    draft.put("=embedding_rate", number(argument.value), argument)
    return None


def best_metric(draft: Draft, argument: Argument) -> Verdict | str | None:
    return no("save.best is by the evaluation loss; train.early_stopping.metric can watch another one")


def resume(draft: Draft, argument: Argument) -> Verdict | str | None:
    if argument.value in OFF:
        return skip("a run resumes from its own last checkpoint")
    if boolean(argument.value) is not None:
        draft.put("save.resume", "auto", argument)
        return None
    return no("a checkpoint of another trainer cannot be resumed; model.warm_start takes an adapter of it")


def report_to(draft: Draft, argument: Argument) -> Verdict | str | None:
    found = [name.lower() for name in as_list(argument.value)]
    done = []
    if "wandb" in found:
        draft.put("track.wandb.project", str(draft.given("wandb_project") or "huggingface"), argument)
        done.append("wandb")
    if "mlflow" in found:
        draft.put("track.mlflow.experiment", "huggingface", argument)
        done.append("mlflow")
    others = [name for name in found if name not in ("wandb", "mlflow", "tensorboard", "none", "all")]
    if others:
        return (
            f"{', '.join(others)} is not a tracker here"
            if done
            else no(f"{', '.join(others)} is not a tracker here; {TENSORBOARD}")
        )
    return None if done else skip(TENSORBOARD)


def kernel_config(draft: Draft, argument: Argument) -> Verdict | str | None:
    if "liger" in str(mapping(argument.value).get("name")):
        draft.put("model.kernels", "liger", argument)
        return None
    return skip("no kernels need to be chosen")


def optim_config(draft: Draft, argument: Argument) -> Verdict | str | None:
    config = mapping(argument.value)
    if config.get("name") != "muon":
        return no("only muon is taken over; see optim")
    draft.put("optim.optimizer", "muon", argument)
    draft.put("optim.weight_decay", number(config.get("wd")) or 0.0, argument)
    draft.put("optim.momentum", number(config.get("momentum")) or 0.95, argument)
    if isinstance(config.get("adamw_betas"), list):
        draft.put("optim.betas", config["adamw_betas"], argument)
    if number(config.get("adamw_eps")):
        draft.put("optim.eps", number(config["adamw_eps"]), argument)
    return "with Newton-Schulz steps and Nesterov momentum as in torch.optim.Muon"


def peft_config(draft: Draft, argument: Argument) -> Verdict | str | None:
    config = mapping(argument.value)
    if config.get("name") != "lora":
        return refuse("freezing parts of the base is not supported; use model.adapter, or train all weights")
    if config.get("export_dir"):
        return refuse("an export: `tailor merge` merges an adapter")
    draft.put("=adapter", "lora", argument)
    for name, key in (("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
        if number(config.get(name)) is not None:
            draft.put(f"model.adapter.{key}", number(config[name]), argument)
    modules(draft, Argument(argument.name, config.get("target_modules", "all"), argument.line))
    return None


def quant_config(draft: Draft, argument: Argument) -> Verdict | str | None:
    bits = number(mapping(argument.value).get("quantization_bit"))
    if bits not in (4, 8):
        return no("model.quantize has 4 or 8 bits")
    draft.put("=bits", bits, argument)
    return None


def loftq(draft: Draft, argument: Argument) -> Verdict | str | None:
    if argument.value in OFF:
        return skip("off")
    draft.put("model.adapter.init", "loftq", argument)
    draft.put("=bits", 4, argument)
    return "needs model.quantize"


def bnb(draft: Draft, argument: Argument) -> Verdict | str | None:
    config = mapping(argument.value)
    if config.get("bnb_4bit_quant_type"):
        draft.put("=quant_type", config["bnb_4bit_quant_type"], argument)
    if boolean(config.get("bnb_4bit_use_double_quant")) is not None:
        draft.put("=double", config["bnb_4bit_use_double_quant"], argument)
    return None


def dequantize(draft: Draft, argument: Argument) -> Verdict | str | None:
    if not boolean(mapping(argument.value).get("dequantize")):
        return no("the weights are loaded as they are stored")
    draft.put("model.dequantize", True, argument)
    return None


def tokens(draft: Draft, argument: Argument) -> Verdict | str | None:
    if isinstance(argument.value, dict):
        return skip("names of special tokens; the tokenizer has them")
    found = as_list(argument.value)
    if not found:
        return skip("empty")
    draft.put("model.add_tokens", list(dict.fromkeys(found)), argument)
    return None


def holdout(draft: Draft, argument: Argument) -> Verdict | str | None:
    share = number(argument.value)
    if share is None and argument.value not in OFF:
        return no("it is not a share of the rows; write data.holdout")
    if not share:
        return skip("no rows are kept for evaluation")
    if share >= 1:
        return no("data.holdout is a share of the rows, not a number")
    draft.put("data.holdout", float(share), argument)
    return None


def per_epoch_evaluations(draft: Draft, argument: Argument) -> Verdict | str | None:
    if not number(argument.value):
        return skip("no evaluations during training")
    draft.put("=evaluate_per_epoch", number(argument.value), argument)
    return None


def per_epoch_saves(draft: Draft, argument: Argument) -> Verdict | str | None:
    if not number(argument.value):
        return skip("one checkpoint after the last step")
    return no(f"{_STEPS}: without save.every there is one checkpoint, after the last step")


def generation_length(draft: Draft, argument: Argument) -> Verdict | str | None:
    return skip("it needs evaluate.generation, which compares answers during training")


def generation(draft: Draft, argument: Argument) -> Verdict | str | None:
    if not boolean(argument.value):
        return skip("off")
    return no("write evaluate.generation: {} with evaluate.every")


def template_path(draft: Draft, argument: Argument) -> Verdict | str | None:
    if str(argument.value).endswith(".jinja"):
        draft.put("data.template", str(argument.value), argument)
        return None
    return no("the text of a template, or another model's: save it as a .jinja file and write data.template")


def model_kwargs(draft: Draft, argument: Argument) -> Verdict | str | None:
    return (
        skip("write model.dtype and model.attention")
        if mapping(argument.value)
        else no("write model.dtype and model.attention")
    )


def loss_type(draft: Draft, argument: Argument) -> Verdict | str | None:
    found = as_list(argument.value)
    if len(found) != 1:
        return no("a mixture of losses; method.loss is one of them, with method.sft_weight for an SFT term")
    from tailor.spec.trainers.values import LOSSES

    verdict = LOSSES.get(found[0].lower(), no("this loss is not available"))
    if isinstance(verdict, Verdict):
        return verdict
    draft.put("method.loss", verdict, argument)
    draft.put("=preference", True, argument)
    return None


def rope_scaling(draft: Draft, argument: Argument) -> Verdict | str | None:
    if argument.value in OFF:
        return skip("off")
    return no(
        "the factor follows from the base model's length, which is not known here; write model.rope with original_length"
    )


_MODULES = (components, sources, axolotl_sources, mixtures)
CONVERSIONS: dict[str, Conversion] = {
    name: function
    for names_of in (globals(), *map(vars, _MODULES))
    for name, function in names_of.items()
    if isfunction(function)
    and function.__module__ in (__name__, *(module.__name__ for module in _MODULES))
    and [*signature(function).parameters] == ["draft", "argument"]
}
"""Name in a row -> conversion."""
