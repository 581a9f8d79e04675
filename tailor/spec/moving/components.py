"""Conversions of sharding, machines and sequence parallelism, and of torchtune's components."""

from __future__ import annotations

import re
from typing import Any

from tailor.spec.moving import sources
from tailor.spec.moving.draft import Argument, Draft, as_list, boolean, mapping, number
from tailor.spec.trainers.rows import OFF, Verdict, no, refuse, skip


def tune_logger(draft: Draft, argument: Argument) -> Verdict | str | None:
    if "wandb" in str(argument.value).lower():
        draft.put("track.wandb.project", "torchtune", argument)
        return None
    return skip("metrics.jsonl and TensorBoard files are always written")


def wandb_project(draft: Draft, argument: Argument) -> Verdict | str | None:
    draft.put("track.wandb.project", str(argument.value), argument)
    return None


def fsdp(draft: Draft, argument: Argument) -> Verdict | str | None:
    words = " ".join(map(str, as_list(argument.value))).lower()
    if argument.value in OFF or not words.strip():
        return skip("off")
    config = mapping(draft.given("fsdp_config"))
    offload = "offload" in words or any(
        boolean(config.get(key)) for key in ("offload_params", "fsdp_offload_params")
    )
    draft.put("scale.strategy", {"name": "fsdp", "offload": True} if offload else "fsdp", argument)
    return None


def shards(draft: Draft, argument: Argument) -> Verdict | str | None:
    size = number(argument.value)
    if not size or size <= 1:
        return skip("one shard")
    draft.put("scale.strategy", "fsdp", argument)
    draft.put("=gpus", int(size), argument)
    return None


def sequence_parallel(draft: Draft, argument: Argument) -> Verdict | str | None:
    size = number(argument.value)
    if not size or size <= 1:
        return skip("off")
    draft.put("scale.sequence_parallel", int(size), argument)
    draft.put("=sequence_workers", int(size), argument)
    return None


def nodes(draft: Draft, argument: Argument) -> Verdict | str | None:
    found = number(argument.value)
    if found is None:
        return no("the number of machines is not known here; set scale.workers")
    draft.put("=nodes", int(found), argument)
    return None


def deepspeed(draft: Draft, argument: Argument) -> Verdict | str | None:
    if argument.value in OFF:
        return skip("off")
    config = (
        argument.value if isinstance(argument.value, dict) else sources.neighbor(draft, str(argument.value))
    )
    zero = mapping(mapping(config).get("zero_optimization"))
    stage = number(zero.get("stage"))
    if not zero:
        match = re.search(r"(?:zero|z|stage|ds_?)[_-]?([0-3])", str(argument.value).lower())
        stage = int(match[1]) if match else 2
        zero = (
            {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
            if "offload" in str(argument.value)
            else {}
        )
    if not stage:
        return skip("ZeRO stage 0 shards nothing: it is ddp")
    section: dict[str, Any] = {"name": "deepspeed", "stage": int(stage)}
    for name, key in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        device = mapping(zero.get(name)).get("device")
        if device in ("cpu", "nvme") and (key == "offload_optimizer" or stage == 3):
            section[key] = device
    draft.put("scale.strategy", section, argument)
    if isinstance(argument.value, str) and not config:
        return "the file is not here: the stage is read from its name"
    return "stage and offloading; its other settings are DeepSpeed's own"


def dist_config(draft: Draft, argument: Argument) -> Verdict | str | None:
    name = str(mapping(argument.value).get("name"))
    if name == "fsdp2":
        draft.put("scale.strategy", "fsdp", argument)
        return None
    if mapping(argument.value).get("config_file"):
        return deepspeed(
            draft, Argument(argument.name, mapping(argument.value).get("config_file"), argument.line)
        )
    return no(f"{name} is not a strategy here")


def validation(draft: Draft, argument: Argument) -> Verdict | str | None:
    draft.put("=eval_steps", number(argument.value), argument)
    draft.put("=eval_strategy", "steps", argument)
    return None


def clip(draft: Draft, argument: Argument) -> None:
    draft.put("optim.max_grad_norm", number(argument.value), argument)


def seed(draft: Draft, argument: Argument) -> None:
    draft.put("train.seed", number(argument.value), argument)


def steps_per_epoch(draft: Draft, argument: Argument) -> Verdict | str | None:
    epochs = number(draft.given("epochs")) or 1
    draft.put("=max_steps", int(number(argument.value) or 0) * int(epochs), argument)
    return f"per epoch, × {int(epochs)} epochs"


def tune_model(draft: Draft, argument: Argument) -> Verdict | str | None:
    name = str(argument.value).rsplit(".", 1)[-1]
    if any(word in str(argument.value) for word in ("vision", "classifier", "clip", "llama4")):
        return refuse("models are trained on text; images and classifiers are not supported")
    draft.put(
        "=adapter",
        "qlora" if name.startswith("qlora") else "lora" if name.startswith("lora") else "full",
        argument,
    )
    if name.startswith("qlora"):
        draft.put("=bits", 4, argument)
    return f"the model is read from model.path, {name} is not needed"


def tune_modules(draft: Draft, argument: Argument) -> None:
    found = [{"output_proj": "o_proj"}.get(name, name) for name in as_list(argument.value)]
    if boolean(draft.given("model.apply_lora_to_mlp")):
        found += ["gate_proj", "up_proj", "down_proj"]
    if boolean(draft.given("model.apply_lora_to_output")):
        found.append("lm_head")
    draft.put("model.adapter.target_modules", found, argument)


def tune_loss(draft: Draft, argument: Argument) -> Verdict | str | None:
    name = str(argument.value).rsplit(".", 1)[-1]
    if "DPO" in name:
        draft.put("method.name", "dpo", argument)
        return None
    if any(word in name for word in ("GRPO", "PPO", "KL")):
        return refuse("RL and distillation are not supported")
    return skip("the loss is computed in tiles anyway")
