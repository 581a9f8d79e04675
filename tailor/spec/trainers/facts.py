"""Facts: what several arguments say together. `tailor.spec.moving.combine` turns them into keys of a recipe."""

from __future__ import annotations

FACTS: dict[str, tuple[str, str]] = {
    "per_device": (
        "train.batch_size",
        (
            "write train.batch_size, the global batch over all workers (train.micro_batch_size is the number of rows in "
            "one forward pass)"
        ),
    ),
    "per_device_and_accumulation": ("train.batch_size", ""),
    "accumulation": (
        "train.batch_size",
        "leave it out: the number of accumulation steps follows from train.batch_size, the global batch",
    ),
    "max_steps": ("train.steps", ""),
    "warmup": ("optim.warmup_steps", ""),
    "warmup_ratio": ("optim.warmup_ratio", ""),
    "beta1": ("optim.betas", ""),
    "beta2": ("optim.betas", ""),
    "bf16": ("train.precision", "write train.precision: bf16"),
    "fp16": ("train.precision", "write train.precision: fp16"),
    "adapter": ("model.adapter", ""),
    "lora_mlp": ("model.adapter.target_modules", ""),
    "lora_output": ("model.adapter.target_modules", ""),
    "bits4": ("model.quantize", "write model.quantize: {type: nf4}"),
    "bits8": ("model.quantize", "write model.quantize: {type: int8}"),
    "bits": ("model.quantize", "write model.quantize: {type: nf4} for 4 bits, {type: int8} for 8"),
    "quant_type": ("model.quantize.type", ""),
    "double": ("model.quantize.double", ""),
    "holdout": ("data.holdout", ""),
    "limit": ("data.train.N.limit", ""),
    "dataset_dir": ("data.train.N.path", ""),
    "data_root": ("data.train.N.path", ""),
    "eval_strategy": ("evaluate.every", "write evaluate.every: N for an evaluation every N steps"),
    "eval_steps": ("evaluate.every", ""),
    "save_strategy": ("save.every", "write save.every: N for a checkpoint every N steps"),
    "save_steps": ("save.every", ""),
    "push": ("export.push_to_hub", "write export.push_to_hub: owner/name"),
    "gpus": ("scale.workers", ""),
    "nodes": ("scale.workers", ""),
    "wandb": ("track.wandb", "write track.wandb: {project: NAME}"),
    "rope_theta": ("model.rope.theta", ""),
    "rope_method": ("model.rope.name", ""),
    "rope_factor": ("model.rope.factor", ""),
    "rope_length": ("model.rope.length", ""),
    "beacon": ("model.beacon", ""),
    "generative_length": ("data.max_length", ""),
    "generative_per_device": ("method.generative_batch_size", ""),
    "none": ("", ""),
}
"""Fact -> the key that it sets in the end, and a hint where the key alone does not say what to write."""
