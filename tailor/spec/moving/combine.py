"""Keys that follow from several arguments together: batch size, adapter, quantization, precision, schedule."""

from __future__ import annotations

from tailor.spec.moving import combine_data, combine_method
from tailor.spec.moving.draft import Draft, boolean, number


def combine(draft: Draft) -> None:
    """Turn the facts of a draft into keys."""
    for step in (
        combine_method.method,
        _workers,
        _batch,
        _adapter,
        combine_method.preference,
        _quantize,
        _precision,
        _length,
        _schedule,
        combine_method.torchtune,
        combine_data.sources,
        combine_data.evaluation,
        combine_data.saving,
        combine_data.tracking,
        combine_data.rope,
        combine_data.beacon,
        combine_data.embedding,
        combine_data.rows,
    ):
        step(draft)


def _workers(draft: Draft) -> None:
    gpus, nodes = draft.facts.get("gpus"), draft.facts.get("nodes") or 1
    found = number(gpus)
    if gpus is not None and found is None:
        draft.answer("gpus", "unsupported", "the number of GPUs is not known here; set scale.workers")
    workers = int(found) * (nodes if draft.trainer.name != "gritlm" else 1) if found else nodes
    if draft.values.get("scale.workers") is None and workers > 1:
        draft.derive("scale.workers", workers, "gpus", "nodes", "sequence_workers")
    sequence = draft.values.get("scale.sequence_parallel")
    if sequence and (draft.values.get("scale.workers") or 1) % sequence:
        draft.derive("scale.workers", sequence, "sequence_workers")
    draft.answer("gpus", "unneeded", "one worker is the default")
    draft.answer("nodes", "unneeded", "one machine is the default")


def _batch(draft: Draft) -> None:
    workers = number(draft.values.get("scale.workers")) or 1
    workers //= draft.values.get("scale.sequence_parallel") or 1
    per_device, steps = number(draft.facts.get("per_device")), number(draft.facts.get("accumulation")) or 1
    together = number(draft.facts.get("per_device_and_accumulation"))
    if together:
        per_device, steps = together, 1
    if draft.values.get("train.batch_size") is not None or per_device is None:
        known = draft.values.get("train.batch_size") is not None
        for fact in ("per_device", "accumulation"):
            if known:
                draft.answer(fact, "unneeded", "train.batch_size is the global batch")
            else:
                draft.answer(
                    fact, "unsupported", "the batch is not a number here: train.batch_size keeps its default"
                )
        return None
    size = int(per_device * steps * workers)
    remark = f"× {workers} GPUs" if workers > 1 else "for 1 GPU: multiply it by the number of GPUs"
    if draft.values.get("method.name") == "gritlm":
        return _grit_batch(draft, size, workers)
    draft.derive(
        "train.batch_size", size, "per_device_and_accumulation", "per_device", "accumulation", remark=remark
    )
    return None


def _grit_batch(draft: Draft, size: int, workers: float) -> None:
    mode = draft.values.get("method.mode", "unified")
    own = number(draft.facts.get("generative_per_device"))
    remark = f"× {workers} GPUs" if workers > 1 else "for 1 GPU: multiply it by the number of GPUs"
    if mode != "generative":
        draft.derive("method.embedding_batch_size", size, "per_device", "accumulation", remark=remark)
    if mode != "embedding":
        generative = int(own * workers) if own else size
        facts = ("generative_per_device",) if own else ("per_device", "accumulation")
        draft.derive("method.generative_batch_size", generative, *facts, remark=remark)
    draft.answer("generative_per_device", "unneeded", "the mode has no such batch")


_PEFT = ("axolotl", "trl", "sft-script")
"""Trainers that leave the choice of the modules to PEFT."""
_TARGETS = ("lora_target_modules", "lora_target_linear", "target_modules", "peft_config")
_DATASETS = ("dataset_name", "datasets", "dataset_mixer", "dataset_mixture")
_KINDS = {
    "lora": None,
    "qlora": None,
    "dora": None,
    "oft": "oft",
    "loha": "loha",
    "lokr": "lokr",
    "ia3": "ia3",
    "vera": "vera",
}


def _adapter(draft: Draft) -> None:
    kind = draft.facts.get("adapter")
    if kind is None and draft.trainer.name == "trl" and any(draft.given(name) for name in _DATASETS):
        kind = "full"  # TRL's own scripts; another script with TrainingArguments may have no use_peft
    if draft.given("model") and not any(draft.given(name) for name in ("finetuning_type", "peft_config")):
        kind = (
            "full" if draft.trainer.name == "llama-factory" else kind
        )  # its version 1 has no default adapter
    own = [key for key in draft.values if key.startswith("model.adapter.")]
    # Without an argument that says so, the arguments of an adapter mean one.
    on = kind not in (None, "full") or (
        kind is None and any(draft.origins[key] and draft.origins[key][0].line >= 0 for key in own)
    )
    if not on or draft.facts.get("beacon"):
        draft.drop(
            "model.adapter",
            "all weights are trained: there is no adapter"
            if not draft.facts.get("beacon")
            else "beacons are trained without an adapter",
        )
        draft.drop("optim.learning_rate_ratios.lora_b", "all weights are trained: there is no adapter")
        draft.drop("model.warm_start", "there is no adapter")
        draft.answer("adapter", "unneeded", "without model.adapter, all weights are trained")
        return
    if _KINDS.get(str(kind)):
        draft.derive("model.adapter.type", _KINDS[str(kind)], "adapter")
    if kind == "dora":
        draft.derive("model.adapter.dora", True, "adapter")
    rank = draft.values.get("model.adapter.rank")
    if (
        draft.trainer.name == "llama-factory"
        and isinstance(rank, int)
        and "model.adapter.alpha" not in draft.values
    ):
        draft.put("model.adapter.alpha", 2 * rank, remark="default of LLaMA-Factory: twice the rank")
    for name, value in draft.trainer.adapter.items():
        if f"model.adapter.{name}" not in draft.values:
            draft.put(f"model.adapter.{name}", value, remark=f"as in the code of {draft.trainer.title}")
    if draft.trainer.name in _PEFT and not any(draft.given(name) for name in _TARGETS):
        draft.put(
            "model.adapter.target_modules",
            ["q_proj", "v_proj"],
            remark="PEFT's default for Llama, Mistral, Qwen, Gemma and OPT; other models have other names",
        )
    if not any(key.startswith("model.adapter.") for key in draft.values):
        draft.derive("model.adapter", {}, "adapter")
    for argument in draft.origins.get("=adapter", []):
        answer = draft.answers.get(argument.name)
        if answer is not None and not answer.keys:
            answer.keys.append("model.adapter")
    if draft.values.get("model.adapter.type") in ("oft", "ia3"):
        draft.drop("model.adapter.rank", "this kind of adapter has no rank")
        draft.drop("model.adapter.alpha", "this kind of adapter has no alpha")


def _quantize(draft: Draft) -> None:
    bits = number(draft.facts.get("bits"))
    if boolean(draft.facts.get("bits4")) or draft.facts.get("adapter") == "qlora":
        bits = 4
    elif boolean(draft.facts.get("bits8")):
        bits = 8
    trains_part = any(key.startswith("model.adapter") for key in draft.values) or draft.facts.get("beacon")
    facts = ("bits", "bits4", "bits8", "quant_type", "double")
    if bits in (4, 8) and trains_part:
        kind = str(draft.facts.get("quant_type") or "nf4").lower()
        used = [
            fact for fact in facts if fact in draft.facts and boolean(draft.facts[fact]) is not False
        ] or ["adapter"]
        draft.derive(
            "model.quantize.type", "int8" if bits == 8 else kind if kind in ("nf4", "fp4") else "nf4", *used
        )
        if bits == 4 and boolean(draft.facts.get("double")) is False:
            draft.derive("model.quantize.double", False, "double")
        elif bits == 4 and "double" not in draft.facts and draft.trainer.name in ("trl", "sft-script"):
            draft.put("model.quantize.double", False, remark=f"default of {draft.trainer.title}")
    if bits not in (4, 8, 16, 32):
        draft.answer("bits", "unsupported", "model.quantize has 4 or 8 bits: the base is not quantized")
    for fact in facts:
        why = (
            "the base is not quantized"
            if bits not in (4, 8)
            else "the type of the quantization is model.quantize.type"
            if trains_part
            else "quantized weights cannot be trained: it needs an adapter"
        )
        draft.answer(fact, "unneeded", why)


def _precision(draft: Draft) -> None:
    bf16, fp16 = draft.facts.get("bf16"), draft.facts.get("fp16")
    if "train.precision" not in draft.values:
        if str(bf16).lower() == "auto" or str(fp16).lower() == "auto":
            draft.derive("train.precision", "auto", "bf16", "fp16")
        elif boolean(bf16) or str(bf16).lower() == "full":
            draft.derive("train.precision", "bf16", "bf16")
        elif boolean(fp16):
            draft.derive("train.precision", "fp16", "fp16")
        elif bf16 is not None and fp16 is not None:
            draft.derive("train.precision", "fp32", "bf16", "fp16")
    for fact in ("bf16", "fp16"):
        draft.answer(fact, "unneeded", "train.precision says which precision is used")


def _length(draft: Draft) -> None:
    steps = number(draft.facts.get("max_steps"))
    if steps and steps > 0:
        draft.drop("train.epochs", "max_steps is the length of the run")
        draft.derive("train.steps", int(steps), "max_steps")
    else:
        draft.answer("max_steps", "unneeded", "off: the epochs are the length of the run")
    if number(draft.values.get("train.epochs")) == 0:
        draft.drop("train.epochs", "0 epochs")


def _schedule(draft: Draft) -> None:
    warmup, ratio = number(draft.facts.get("warmup")), number(draft.facts.get("warmup_ratio"))
    if warmup and 0 < warmup < 1:
        draft.derive("optim.warmup_ratio", float(warmup), "warmup")
        draft.answer("warmup_ratio", "unneeded", "warmup_steps counts")
    elif warmup and warmup >= 1:
        draft.derive("optim.warmup_steps", int(warmup), "warmup")
        draft.answer("warmup_ratio", "unneeded", "warmup_steps counts")
    elif ratio:
        draft.derive("optim.warmup_ratio", float(ratio), "warmup_ratio")
    draft.answer("warmup", "unneeded", "no warm-up")
    draft.answer("warmup_ratio", "unneeded", "no warm-up")
    if draft.values.get("optim.schedule") == "constant_with_warmup" and not (warmup or ratio):
        draft.values["optim.schedule"] = "constant"
    cycles = number(draft.values.get("optim.cycles")) or 1
    if draft.values.get("optim.schedule") == "cosine_with_restarts" and cycles < 2:
        draft.values["optim.schedule"] = "cosine"
        draft.remarks["optim.schedule"] = "one cycle, the default, is a cosine"
        draft.drop("optim.cycles", "one cycle is the schedule cosine")
    peak = number(draft.values.get("optim.learning_rate"))
    share = number(draft.facts.get("min_ratio"))
    if share and peak:
        draft.derive("optim.min_learning_rate", share * peak, "min_ratio")
    draft.answer("min_ratio", "unneeded", "0")
    embedding = number(draft.facts.get("embedding_rate"))
    if embedding and peak and "embed_tokens" in (draft.values.get("model.adapter.modules_to_save") or []):
        draft.derive("optim.learning_rate_ratios.embeddings", embedding / peak, "embedding_rate")
    draft.answer("embedding_rate", "unneeded", "embeddings are not trained: model.adapter.modules_to_save")
    for beta, name in (("beta1", 0), ("beta2", 1)):
        if number(draft.facts.get(beta)) is not None:
            betas = list(draft.values.get("optim.betas") or (0.9, 0.999))
            betas[name] = number(draft.facts[beta])
            draft.put(
                "optim.betas",
                betas,
                *draft.origins.get("optim.betas", []),
                *draft.origins.get(f"={beta}", []),
            )
