"""The rules between keys.

They look at plain values, not at a validated Recipe, so that they speak up beside other mistakes.
A rule never judges a key that is wrong by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tailor.errors import Problem
from tailor.spec.data import Data
from tailor.spec.layers import COMMAND_LINE
from tailor.spec.source import Document, Path, dotted
from tailor.spec.train import DEFAULT_BATCH_SIZE

Conflict = tuple[str, str, str]
"""Two keys that do not go together, and why. The problem stands at the later one and names the other."""
Finding = tuple[str, str]
"""A key, and what is wrong with it beside the others."""


class Keys:
    """The plain values, without those that are wrong by themselves."""

    def __init__(self, values: Any, wrong: set[str]) -> None:
        self._document = Document("", values)
        self._wrong = wrong

    def __call__(self, key: str) -> Any:
        """The value; None where the key is absent, null or wrong."""
        return None if self.is_wrong(key) else self._document.get(path_of(key))

    def is_wrong(self, key: str) -> bool:
        path = path_of(key)
        return any(dotted(path[:depth]) in self._wrong for depth in range(1, len(path) + 1))

    def given(self, key: str) -> bool:
        """The key stands in the recipe, whatever its value."""
        return path_of(key) in self._document.keys or self._document.get(path_of(key), ...) is not ...

    def absent(self, key: str) -> bool:
        """The key is neither given nor meant: absent, null, false or an empty list."""
        return not self.is_wrong(key) and self._document.get(path_of(key)) in (None, False, [])

    def sources(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The sources of `data.train` or `data.evaluation` with their keys."""
        sources = self(key)
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, dict):
                yield f"{key}.{index}", source


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every broken rule. `wrong` are the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    found: list[Problem] = []
    for conflicts in (_pairs, _sizes, _model, _folders):
        for key, other, why in conflicts(keys):
            early, late = sorted((key, other), key=lambda name: _order(document, name))
            place = document.keys.get(path_of(early))
            named = f"{early} ({place})" if place else early
            found.append(
                document.at_key(path_of(late)).problem(path_of(late), f"conflicts with {named}: {why}")
            )
    findings: tuple[Callable[[Keys], Iterator[Finding]], ...] = (_needs, _lists, _strategy, _idle)
    for finding in findings:
        for key, message in finding(keys):
            found.append(document.at_key(path_of(key)).problem(path_of(key), message))
    return found


def idle_keys(values: dict[str, Any]) -> list[Path]:
    """The keys of a complete recipe that have no effect beside its other keys."""
    return [path_of(key) for key, _ in _idle(Keys(values, set()))]


def path_of(key: str) -> Path:
    return tuple(int(step) if step.isdecimal() else step for step in key.split("."))


def _order(document: Document, key: str) -> tuple[int, int, int]:
    """Where a key stands: nowhere, in the base, in the file, or on the command line."""
    place = document.keys.get(path_of(key))
    if place is None:
        return 0, 0, 0
    return (
        3 if place.file == COMMAND_LINE else 2 if place.file == document.file else 1,
        place.line,
        place.column,
    )


def _pairs(keys: Keys) -> Iterator[Conflict]:
    """Two ways to say one thing."""
    for key, other in (
        ("train.epochs", "train.steps"),
        ("train.batch_size", "train.batch_tokens"),
        ("optim.warmup_ratio", "optim.warmup_steps"),
        ("data.holdout", "data.evaluation"),
    ):
        if keys(key) is not None and keys(other) not in (None, []):
            yield key, other, f"give one of them ({other}=null takes that one away)"


def _sizes(keys: Keys) -> Iterator[Conflict]:
    batch, micro = keys("train.batch_size"), keys("train.micro_batch_size")
    by_tokens, workers = keys("train.batch_tokens"), _most_workers(keys)
    if batch and micro and micro > batch:
        yield (
            "train.micro_batch_size",
            "train.batch_size",
            f"a forward pass of {micro} rows is more than the global batch of {batch}",
        )
    if batch and workers and workers > batch:
        yield (
            "scale.workers",
            "train.batch_size",
            f"a global batch of {batch} rows leaves some of {workers} workers without any",
        )
    default = keys.absent("train.batch_size") and keys.absent("train.batch_tokens")
    if workers and workers > DEFAULT_BATCH_SIZE and default:
        yield (
            "scale.workers",
            "train.batch_size",
            f"its default of {DEFAULT_BATCH_SIZE} rows leaves some of {workers} workers without any",
        )
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    if by_tokens and not keys.is_wrong("data.max_length") and by_tokens < length:
        yield (
            "train.batch_tokens",
            "data.max_length",
            f"a batch of {by_tokens} tokens cannot hold an example of {length}",
        )
    fewest, most = keys("scale.workers.min"), keys("scale.workers.max")
    if fewest and most and fewest > most:
        yield "scale.workers.min", "scale.workers.max", f"at least {fewest} workers, but at most {most}"
    steps, warmup = keys("train.steps"), keys("optim.warmup_steps")
    if steps and warmup and warmup >= steps:
        yield "optim.warmup_steps", "train.steps", f"the warm-up of {warmup} steps never ends in {steps}"


def _most_workers(keys: Keys) -> int | None:
    workers = keys("scale.workers")
    most: int | None = workers if isinstance(workers, int) else keys("scale.workers.max")
    return most


def _model(keys: Keys) -> Iterator[Conflict]:
    if keys("model.init") == "random":
        for key in ("model.adapter", "model.quantize"):
            if keys(key) is not None:
                yield key, "model.init", "new weights (init: random) must all be trained"
    saved, targets = keys("model.adapter.modules_to_save"), keys("model.adapter.target_modules")
    if isinstance(targets, list) and isinstance(saved, list):
        both = [name for name in saved if name in targets]
        if both:
            yield (
                "model.adapter.modules_to_save",
                "model.adapter.target_modules",
                f"{both[0]} is in both; a module is trained in full or through the adapter",
            )
    if keys("model.attention") == "flash_attention_2":
        if keys("train.precision") == "fp32":
            yield "model.attention", "train.precision", "flash_attention_2 computes in bf16 and fp16 only"
        if keys("scale.gpu") is False:
            yield "model.attention", "scale.gpu", "flash_attention_2 needs a GPU"


SHARDED_OPTIMIZERS = ("adamw", "sgd")
"""Those that change each element by itself, in PyTorch's own code."""


def _strategy(keys: Keys) -> Iterator[Finding]:
    """What a strategy that shares something out over the workers cannot do."""
    name, stage = strategy_name(keys), keys("scale.strategy.stage")
    if name not in ("fsdp", "deepspeed"):
        return
    shown = f"conflicts with scale.strategy {name}" + (f" stage {stage}" if stage else "")
    optimizer = keys("optim.optimizer")
    if optimizer is not None and optimizer not in SHARDED_OPTIMIZERS:
        yield (
            "optim.optimizer",
            (
                f"{shown}, which gives each worker a part of the optimizer's state: {optimizer} needs whole weights "
                f"or kernels of its own; take {' or '.join(SHARDED_OPTIMIZERS)}"
            ),
        )
    if keys("train.precision") == "fp16":
        yield "train.precision", f"{shown}, which computes in bf16 or fp32"
    if keys("train.compile"):
        yield "train.compile", f"{shown}, whose hooks would break the compiled graph at every layer"
    if name == "deepspeed" and stage != 3:
        return
    if not keys.absent("model.quantize"):
        yield (
            "model.quantize",
            (
                f"{shown}, which cuts every weight into parts: bitsandbytes' packed weights cannot be cut; "
                "take ddp or ZeRO stage 1 or 2"
            ),
        )
    if keys("model.attention") == "flash_attention_2":
        yield (
            "model.attention",
            f"{shown}, under which the attention is proven on a CPU, before any weight is on a GPU; leave it at auto",
        )
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            (
                f"{shown}: every token of an answer would gather all weights from all workers; "
                "generate from the finished model"
            ),
        )


def strategy_name(keys: Keys) -> Any:
    """`auto`, `ddp`, `fsdp` or `deepspeed`, however it is written."""
    value = keys("scale.strategy")
    return keys("scale.strategy.name") if isinstance(value, dict) else value


def _folders(keys: Keys) -> Iterator[Conflict]:
    to, store, model = keys("save.to"), keys("data.store"), keys("model.path")
    if to and store and (_inside(store, to) or _inside(to, store)):
        yield (
            "data.store",
            "save.to",
            "prepared tokens serve many runs; keep them beside the run's folder, not in one another",
        )
    if to and model and _inside(to, model):
        yield "save.to", "model.path", "the run's folder would lie in the base model's"


def _inside(inner: str, outer: str) -> bool:
    parts = [[part for part in name.split("/") if part not in ("", ".")] for name in (inner, outer)]
    return inner.startswith("/") == outer.startswith("/") and parts[0][: len(parts[1])] == parts[1]


def _needs(keys: Keys) -> Iterator[Finding]:
    """Keys that say nothing without another."""
    if keys("model.quantize") is not None and keys.absent("model.adapter") and keys("model.init") != "random":
        yield "model.quantize", "needs model.adapter: quantised weights cannot be trained themselves"
    no_evaluation = keys.absent("data.evaluation") and keys.absent("data.holdout")
    for key in ("evaluate.every", "evaluate.generation", "save.best"):
        if keys(key) not in (None, False) and no_evaluation:
            yield key, "needs evaluation data: give data.holdout or data.evaluation"
    if keys("train.divergence.action") == "reload" and keys.absent("save.every"):
        yield (
            "train.divergence.action",
            "reload needs save.every: without it there is no checkpoint to go back to",
        )
    stage = keys("scale.strategy.stage")
    for key in ("offload_optimizer", "offload_parameters"):
        value = keys(f"scale.strategy.{key}")
        if stage in (1, 2) and (value == "nvme" or (value and key == "offload_parameters")):
            yield f"scale.strategy.{key}", f"{value} needs stage 3; this is stage {stage}"
        if value == "nvme" and keys.absent("scale.strategy.nvme_path"):
            yield (
                f"scale.strategy.{key}",
                "nvme needs scale.strategy.nvme_path: a folder on each worker's disk",
            )
    if keys("save.best") and keys.absent("evaluate.every") and not no_evaluation:
        yield "save.best", "needs evaluate.every: without it only the last step is evaluated"


def _lists(keys: Keys) -> Iterator[Finding]:
    targets = keys("model.adapter.target_modules")
    if targets == []:
        yield (
            "model.adapter.target_modules",
            "an empty list trains nothing; name modules, or write all-linear",
        )
    for key in ("model.adapter.target_modules", "model.adapter.modules_to_save"):
        names = keys(key)
        for name in (
            sorted({name for name in names if names.count(name) > 1}) if isinstance(names, list) else []
        ):
            yield key, f"names {name} twice"
    for section in ("data.train", "data.evaluation"):
        seen: list[tuple[str, Any]] = []
        for key, source in keys.sources(section):
            first = next((other for other, known in seen if known == source), None)
            if first:
                mend = "weight shows rows more often" if section == "data.train" else "leave one out"
                yield key, f"is the same source as {first}; {mend}"
            seen.append((key, source))


def _idle(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored. The text is complete recipes' too: a resolved recipe leaves these keys out."""
    optimizer = keys("optim.optimizer") or "adamw"
    adamw, lion = "adamw" in optimizer, optimizer == "lion"
    if not keys.is_wrong("optim.optimizer"):
        for key, used, whose in (
            ("optim.betas", adamw or lion, "the adamw optimizers and lion"),
            ("optim.eps", adamw, "the adamw optimizers"),
            ("optim.momentum", optimizer == "sgd", "sgd"),
            ("optim.weight_decay", optimizer != "sgd", "the other optimizers"),
        ):
            if keys(key) is not None and not used:
                yield key, f"has no effect on {optimizer}; it is for {whose}"
    if keys("model.quantize.type") == "int8" and keys("model.quantize.double") is not None:
        yield "model.quantize.double", "has no effect on int8; it is for nf4 and fp4"
    if keys("model.dtype") not in (None, "auto") and keys.absent("model.adapter"):
        yield (
            "model.dtype",
            "has no effect without model.adapter: all weights are trained, and trained weights are held in float32",
        )
    devices = [keys(f"scale.strategy.{name}") for name in ("offload_optimizer", "offload_parameters")]
    if keys("scale.strategy.nvme_path") is not None and "nvme" not in devices:
        yield (
            "scale.strategy.nvme_path",
            "has no effect without offload_optimizer or offload_parameters: nvme",
        )
    stops = keys("train.divergence.action") in (None, "stop") and not keys.is_wrong("train.divergence.action")
    if stops and keys("train.divergence.limit") is not None:
        yield "train.divergence.limit", "has no effect with action: stop; it is for skip and reload"
    if keys("save.keep") is not None and keys.absent("save.every") and keys.absent("save.best"):
        yield "save.keep", "has no effect without save.every: the only checkpoint is the last step's"
    for key, source in [*keys.sources("data.train"), *keys.sources("data.evaluation")]:
        if keys(f"{key}.weight") is not None and key.startswith("data.evaluation"):
            yield f"{key}.weight", "has no effect: every evaluation row counts once"
        path = keys(f"{key}.path")
        if isinstance(path, str) and "://" in path and not path.startswith("hf://"):
            for name in ("subset", "split"):
                if source.get(name) is not None:
                    yield f"{key}.{name}", "has no effect: it is for Hugging Face datasets (hf://…)"
