"""Rules of the user's own DeepSpeed JSON.

The recipe decides; `auto` in the JSON takes the recipe's value. Other values must not contradict the recipe, and
settings that tailor cannot support are errors. For the keys of DeepSpeed see
https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterator
from typing import Any

from tailor.errors import Problem
from tailor.spec.optim import Optim
from tailor.spec.reading import secrets
from tailor.spec.reading.source import Document, parse
from tailor.spec.rules.keys import Keys, path_of
from tailor.spec.rules.optim import CONSTANT
from tailor.spec.train import DEFAULT_BATCH_SIZE
from tailor.spec.trainers.common import EXPERT_PARALLELISM

KEY = "scale.strategy.config"
AUTO = "auto"
PASSED_ON = frozenset(
    (
        *("zero_optimization", "aio", "communication_data_type", "comms_logger", "wall_clock_breakdown"),
        *("steps_per_print", "memory_breakdown", "zero_allow_untested_optimizer"),
        "zero_force_ds_cpu_optimizer",
    )
)
"""Top-level keys that are passed on to DeepSpeed as they are, because no key of a recipe corresponds to them."""
# Checkpoints are stored by the layout of plain ZeRO; these options shard weights in another way.
_OTHER_LAYOUTS = ("zero_hpz_partition_size", "mics_shard_size", "zenflow", "super_offload")
_QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
_OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "sgd": "sgd"}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}

Claim = tuple[str, str, Any]
"""A key of the JSON, the recipe's key that decides it, and the recipe's value (None: the plan derives it)."""


def read(path: str) -> Document:
    """The values of the JSON and their positions. Errors in the text are in the document's problems."""
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        return parse(file.read(), path)


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every contradiction between the recipe and its DeepSpeed JSON."""
    keys = Keys(document.values, wrong)
    path = keys(KEY)
    if not isinstance(path, str) or keys("scale.strategy.name") != "deepspeed":
        return []
    position = document.at_value(path_of(KEY))
    try:
        json = read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        return [position.problem(path_of(KEY), f"{path} cannot be read: {reason}")]
    if json.problems or not isinstance(json.values, dict):
        first = f": {json.problems[0].message}" if json.problems else ""
        return [position.problem(path_of(KEY), f"{path} is not a JSON object{first}")]
    location = "the environment (HF_TOKEN, AWS_…)"
    return [*secrets.problems(json, location), *secrets.key_problems(json, location)] + [
        json.at_key(path_of(key)).problem(path_of(key), message)
        for key, message in [*_misplaced(json), *_contradictions(json, document, keys)]
    ]


def _misplaced(json: Document) -> Iterator[tuple[str, str]]:
    known = PASSED_ON | {claim[0].split(".")[0] for claim in _claims(Keys({}, set()))} | {"scheduler", "fp16"}
    for key in json.values:
        if key not in known:
            instead = f": {EXPERT_PARALLELISM}" if key == "expert_parallel" else " in a run of tailor"
            yield key, f"is not supported{instead}; remove it"
    claimed = {claim[0] for claim in _claims(Keys({}, set()))}
    for section in ("optimizer", "scheduler", "bf16"):
        for key in _leaves(json.values.get(section), section):
            if key not in claimed and json.get(path_of(key)) not in (AUTO, None):
                yield (
                    key,
                    "is not supported in a DeepSpeed config: no recipe key corresponds to it; remove it",
                )
    zero = json.values.get("zero_optimization")
    for key in zero if isinstance(zero, dict) else ():
        if key in _OTHER_LAYOUTS and zero[key] not in (0, 1, -1, None, False):
            yield (
                f"zero_optimization.{key}",
                "shards weights in a way that checkpoints do not support; remove it",
            )
        if key in _QUANTIZED and zero[key]:
            yield (
                f"zero_optimization.{key}",
                "quantizes weights or gradients, which changes the loss curve; remove it",
            )


def _leaves(value: Any, above: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{above}.{key}")
    elif value is not None:
        yield above


def _contradictions(json: Document, document: Document, keys: Keys) -> Iterator[tuple[str, str]]:
    for key, decides, value in _claims(keys):
        json_value = json.get(path_of(key), None)
        if json_value is None or json_value == AUTO or keys.is_wrong(decides):
            continue
        if value is None:
            yield (
                key,
                f"is {_shown(json_value)}, but the plan derives it from the recipe; write auto or remove it",
            )
        elif not _same(json_value, value):
            position = document.keys.get(path_of(decides))
            source = f"{position}" if position else "its default"
            own = keys(decides) if decides == "train.precision" else value
            yield (
                key,
                f"is {_shown(json_value)}, but {decides} is {_shown(own)} ({source}); write auto or remove it",
            )


def _claims(keys: Keys) -> Iterator[Claim]:
    batch, micro, tokens = (
        keys("train.batch_size"),
        keys("train.micro_batch_size"),
        keys("train.batch_tokens"),
    )
    batch = None if tokens else batch or DEFAULT_BATCH_SIZE
    workers = keys("scale.workers") or 1
    yield "train_batch_size", "train.batch_size", batch
    yield "train_micro_batch_size_per_gpu", "train.micro_batch_size", micro
    steps = (
        math.ceil(math.ceil(batch / micro) / workers) if batch and micro and type(workers) is int else None
    )
    yield "gradient_accumulation_steps", "train.batch_size", steps
    clipping = "optim.max_grad_norm"
    limit = keys(clipping) if not keys.absent(clipping) else 0.0 if keys.given(clipping) else 1.0
    yield "gradient_clipping", clipping, limit
    precision = keys("train.precision") or AUTO
    for name in ("bf16", "fp16"):
        yield f"{name}.enabled", "train.precision", None if precision == AUTO else precision == name
    optimizer = keys("optim.optimizer") or "adamw"
    yield "optimizer.type", "optim.optimizer", optimizer
    yield "optimizer.params.lr", "optim.learning_rate", keys("optim.learning_rate")
    for ours, theirs in (("betas", "betas"), ("eps", "eps"), ("weight_decay", "weight_decay")):
        own = keys(f"optim.{ours}")
        default = Optim.model_fields[ours].get_default(
            call_default_factory=True, validated_data={"optimizer": optimizer}
        )
        yield f"optimizer.params.{theirs}", f"optim.{ours}", own if own is not None else default
    schedule = keys("optim.schedule") or "cosine"
    yield "scheduler.type", "optim.schedule", "constant" if schedule in CONSTANT else schedule
    yield "scheduler.params.warmup_num_steps", "optim.warmup_steps", keys("optim.warmup_steps")
    yield "scheduler.params.warmup_max_lr", "optim.learning_rate", keys("optim.learning_rate")
    yield "scheduler.params.warmup_min_lr", "optim.schedule", 0
    yield "scheduler.params.total_num_steps", "train.steps", keys("train.steps")
    yield "zero_optimization.stage", "scale.strategy.stage", keys("scale.strategy.stage")
    for ours, theirs in (("offload_optimizer", "offload_optimizer"), ("offload_parameters", "offload_param")):
        key = f"scale.strategy.{ours}"
        yield f"zero_optimization.{theirs}.device", key, keys(key) or "none"
        if keys(key) == "nvme":
            path = "scale.strategy.nvme_path"
            yield f"zero_optimization.{theirs}.nvme_path", path, keys(path)


def _same(json_value: Any, value: Any) -> bool:
    if isinstance(json_value, str) and isinstance(value, str):
        translated = _OPTIMIZERS.get(json_value.lower()) or _SCHEDULES.get(json_value) or json_value
        return translated == value
    if isinstance(json_value, list) or isinstance(value, list | tuple):
        return isinstance(json_value, list) and list(json_value) == list(value)
    return bool(json_value == value) and isinstance(json_value, bool) == isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(list(value)) if isinstance(value, tuple) else str(value)
