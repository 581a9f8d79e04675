"""The rules between the keys of a recipe.

They read plain values, not a validated Recipe, so that they also report when other keys are wrong. A rule ignores a
key that is wrong by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from tailor.errors import Problem
from tailor.spec.data import Data
from tailor.spec.model import TOKEN_TABLES
from tailor.spec.reading.overrides import COMMAND_LINE
from tailor.spec.reading.source import Document, Path
from tailor.spec.rules import (
    adapter,
    beacon,
    early_stopping,
    final_evaluation,
    methods,
    optim,
    pose,
    rope,
    router,
    sequence_parallel,
    sources,
    strategy,
    suite,
)
from tailor.spec.rules.keys import Conflict, Finding, Keys, path_of
from tailor.spec.rules.tasks.retrieval import unused_of_corpus
from tailor.spec.tasks.registry import task_class
from tailor.spec.train import DEFAULT_BATCH_SIZE


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every broken rule. wrong: the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    found: list[Problem] = []
    rules = (
        _pairs,
        _sizes,
        _model,
        rope.conflicts,
        pose.conflicts,
        adapter.conflicts,
        beacon.conflicts,
        strategy.conflicts,
        _retrieval,
        methods.conflicts,
        _folders,
        router.conflicts,
        sequence_parallel.conflicts,
        optim.conflicts,
        sources.conflicts,
    )
    for conflicts in rules:
        for key, other, why in conflicts(keys):
            early, late = sorted((key, other), key=lambda name: _order(document, name))
            position = document.keys.get(path_of(early))
            named = f"{early} ({position})" if position else early
            found.append(
                document.at_key(path_of(late)).problem(path_of(late), f"conflicts with {named}: {why}")
            )
    findings: tuple[Callable[[Keys], Iterator[Finding]], ...] = (
        _needs,
        methods.findings,
        adapter.findings,
        beacon.findings,
        _lists,
        sources.findings,
        lambda keys: suite.without_questions(keys, "data."),
        rope.findings,
        strategy.findings,
        sequence_parallel.findings,
        optim.findings,
        early_stopping.findings,
        _unused,
        final_evaluation.findings,
    )
    for finding in findings:
        for key, message in finding(keys):
            found.append(document.at_key(path_of(key)).problem(path_of(key), message))
    return found


def unused_keys(values: dict[str, Any]) -> list[Path]:
    """The keys of a complete recipe that have no effect because of its other keys."""
    keys = Keys(values, set())
    final = suite.unused(keys, "evaluate.final.") if keys("evaluate.final") is not None else ()
    return [path_of(key) for key, _ in (*_unused(keys), *final)]


def _order(document: Document, key: str) -> tuple[int, int, int]:
    """Sort key for the origin of a key: absent, in the base, in the file, on the command line."""
    position = document.keys.get(path_of(key))
    if position is None:
        return 0, 0, 0
    return (
        3 if position.file == COMMAND_LINE else 2 if position.file == document.file else 1,
        position.line,
        position.column,
    )


PAIRS = (
    ("train.epochs", "train.steps"),
    ("train.epochs", "train.tokens"),
    ("train.steps", "train.tokens"),
    ("train.batch_size", "train.batch_tokens"),
    ("optim.warmup_ratio", "optim.warmup_steps"),
    ("optim.decay_ratio", "optim.decay_steps"),
    ("data.holdout", "data.evaluation"),
)
"""Two keys for the same setting, of which a recipe has at most one."""


def replace_twins(document: Document) -> None:
    """Remove the keys of files for a setting that the command line sets with the other key of a pair."""
    for pair in PAIRS:
        for given, other in (pair, pair[::-1]):
            position, theirs = (document.keys.get(path_of(key)) for key in (given, other))
            if (
                position is None
                or position.file != COMMAND_LINE
                or theirs is None
                or theirs.file == COMMAND_LINE
            ):
                continue
            if document.get(path_of(given)) not in (None, []):
                *above, name = path_of(other)
                document.get(tuple(above)).pop(name, None)
                document.forget([path_of(other)])


def _pairs(keys: Keys) -> Iterator[Conflict]:
    """Two keys for the same setting."""
    for key, other in PAIRS:
        if keys(key) is not None and keys(other) not in (None, []):
            yield key, other, f"use only one of them ({other}=null removes it)"


def _sizes(keys: Keys) -> Iterator[Conflict]:
    batch, micro = keys("train.batch_size"), keys("train.micro_batch_size")
    by_tokens, workers = keys("train.batch_tokens"), _max_workers(keys)
    if batch and micro and micro > batch:
        yield (
            "train.micro_batch_size",
            "train.batch_size",
            f"a micro-batch of {micro} rows is larger than the global batch of {batch}; lower train.micro_batch_size",
        )
    parts = keys("scale.sequence_parallel") or 1
    groups = workers // parts if workers else 0
    named = f"{groups} groups of {parts} workers" if parts > 1 else f"{workers} workers"
    if batch and groups > batch:
        yield (
            "scale.workers",
            "train.batch_size",
            f"a batch of {batch} rows is too small for {named}; lower scale.workers or raise train.batch_size",
        )
    default = keys.absent("train.batch_size") and keys.absent("train.batch_tokens")
    default &= keys.method is None or keys.method.streams is None
    if groups > DEFAULT_BATCH_SIZE and default:
        yield (
            "scale.workers",
            "train.batch_size",
            f"the default batch of {DEFAULT_BATCH_SIZE} rows is too small for {named}; set train.batch_size",
        )
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    if by_tokens and not keys.is_wrong("data.max_length") and by_tokens < length:
        yield (
            "train.batch_tokens",
            "data.max_length",
            f"a batch of {by_tokens} tokens is smaller than an example of {length}; raise train.batch_tokens",
        )
    shortest = keys("data.min_length")
    joins = keys.method is not None and keys.method.joins
    dropped = keys("data.on_long") in (None, "drop") and not keys.is_wrong("data.on_long") and not joins
    if shortest and not keys.is_wrong("data.max_length") and dropped and shortest > length:
        yield (
            "data.min_length",
            "data.max_length",
            f"no row has at least {shortest} and at most {length} tokens; lower data.min_length, or set data.on_long",
        )
    yield from suite.long_rows(keys, "data.", length, "data.max_length")
    minimum, maximum = keys("scale.workers.min"), keys("scale.workers.max")
    if minimum and maximum and minimum > maximum:
        yield (
            "scale.workers.min",
            "scale.workers.max",
            f"the minimum {minimum} is larger than the maximum {maximum}; change one of them",
        )


def _max_workers(keys: Keys) -> int | None:
    workers = keys("scale.workers")
    maximum: int | None = workers if isinstance(workers, int) else keys("scale.workers.max")
    return maximum


def _model(keys: Keys) -> Iterator[Conflict]:
    if keys("model.init") == "random":
        for key in ("model.adapter", "model.beacon", "model.quantize", "model.dequantize"):
            if keys(key) not in (None, False):
                yield (
                    key,
                    "model.init",
                    f"with new weights (init: random) all weights must be trained; remove {key}",
                )
    saved, targets = keys("model.adapter.modules_to_save"), keys("model.adapter.target_modules")
    if isinstance(targets, list) and isinstance(saved, list):
        both = [name for name in saved if name in targets]
        if both:
            yield (
                "model.adapter.modules_to_save",
                "model.adapter.target_modules",
                f"{both[0]} is in both lists, but a module is trained either in full or with an adapter; remove it from one list",
            )
    for key, names in (("modules_to_save", saved), ("target_modules", targets)):
        tables = [name for name in names or () if str(name).rsplit(".", 1)[-1] in TOKEN_TABLES]
        if keys("model.add_tokens") and isinstance(names, list) and tables:
            yield (
                "model.add_tokens",
                f"model.adapter.{key}",
                f"new tokens train rows of {tables[0]}, which cannot be trained in another way too; remove it there",
            )
    if keys("scale.accelerator") is not None and keys("scale.gpu") is False:
        yield "scale.accelerator", "scale.gpu", "no GPU is used; remove scale.accelerator"
    if keys("model.kernels") == "liger":
        for key, why in (
            ("train.tiled_mlp", "tiles do not use the kernel of the MLP"),
            ("train.compile", "torch.compile makes kernels of its own"),
            ("model.beacon", "the layers of beacons do not use the kernels"),
        ):
            if keys(key) not in (None, False):
                yield "model.kernels", key, f"{why}; remove one of them"
        if keys("scale.gpu") is False:
            yield "model.kernels", "scale.gpu", "liger needs a GPU; set model.kernels: none"
    if keys("model.attention") == "flash_attention_2":
        if keys("train.precision") == "fp32":
            yield (
                "model.attention",
                "train.precision",
                "flash_attention_2 supports only bf16 and fp16; change one of them",
            )
        if keys("scale.gpu") is False:
            yield "model.attention", "scale.gpu", "flash_attention_2 needs a GPU; set model.attention: auto"


def _retrieval(keys: Keys) -> Iterator[Conflict]:
    """Retrieval needs embeddings, and reranking a reranker."""
    method = keys.method
    for at, task in enumerate(suite.task_names(keys, "evaluate.final.") or ()):
        if method is not None and method.ranked_passages is None and task_class(task).ranks:
            why = f"{task} needs a reranker; remove evaluate.final.tasks.{at}"
            yield f"evaluate.final.tasks.{at}.name", "method.name", why
    if method is None or method.embedding is not None:
        return
    retrieval = [key for key in ("evaluate.retrieval",) if keys(key) is not None]
    for at, task in enumerate(suite.task_names(keys, "evaluate.final.") or ()):
        retrieval += [f"evaluate.final.tasks.{at}.name"] if task_class(task).embeds else []
    for key in retrieval:
        yield (
            key,
            method.embedding_key,
            f"retrieval needs embeddings, and none are trained; remove {key.removesuffix('.name')}",
        )


def _folders(keys: Keys) -> Iterator[Conflict]:
    to, store, model = keys("save.to"), keys("data.store"), keys("model.path")
    if to and store and (_inside(store, to) or _inside(to, store)):
        yield (
            "data.store",
            "save.to",
            "one folder is inside the other, but several runs share the tokens; use separate folders",
        )
    if to and model and _inside(to, model):
        yield (
            "save.to",
            "model.path",
            "the run's folder would be inside the base model's folder; change save.to",
        )


def _inside(inner: str, outer: str) -> bool:
    parts = [[part for part in name.split("/") if part not in ("", ".")] for name in (inner, outer)]
    return inner.startswith("/") == outer.startswith("/") and parts[0][: len(parts[1])] == parts[1]


def _needs(keys: Keys) -> Iterator[Finding]:
    """Keys that need another key."""
    full = keys.absent("model.adapter") and keys.absent("model.beacon")
    if keys("model.quantize") is not None and full and keys("model.init") != "random":
        yield "model.quantize", "needs model.adapter: quantized weights cannot be trained"
    no_evaluation = keys.absent("data.evaluation") and keys.absent("data.holdout")
    for key in ("evaluate.every", "evaluate.generation", "save.best"):
        retrieval = key == "evaluate.every" and keys("evaluate.retrieval") is not None
        if keys(key) not in (None, False) and no_evaluation and not retrieval:
            yield key, "needs evaluation data: set data.holdout or data.evaluation"
    repository = keys("export.push_to_hub")
    if isinstance(repository, str) and [bool(part) for part in repository.split("/")] != [True, True]:
        yield (
            "export.push_to_hub",
            f"{repository} is not a repository name; write owner/name, such as my-name/my-model",
        )
    if keys("export.weights") is not None and keys.absent("model.adapter"):
        yield (
            "export.weights",
            "needs model.adapter: without an adapter, the full model is always pushed; remove it",
        )
    if keys("train.divergence.action") == "reload" and keys.absent("save.every") and keys.absent("save.best"):
        yield (
            "train.divergence.action",
            "reload needs save.every: without it there is no checkpoint to return to",
        )
    if keys("data.deduplicate") == "near" and find_spec("datasketch") is None:
        yield "data.deduplicate", "near needs the package datasketch: pip install 'tailor[doctor]'"
    if keys("save.best") and keys.absent("evaluate.every") and not no_evaluation:
        yield "save.best", "needs evaluate.every: without it only the last step is evaluated"


def _lists(keys: Keys) -> Iterator[Finding]:
    targets = keys("model.adapter.target_modules")
    if targets == []:
        yield (
            "model.adapter.target_modules",
            "an empty list trains nothing; list module names, or write all-linear",
        )
    for key in ("model.adapter.target_modules", "model.adapter.modules_to_save", "model.add_tokens"):
        names = keys(key)
        for name in (
            sorted(name for name, count in Counter(names).items() if count > 1)
            if isinstance(names, list)
            else []
        ):
            yield key, f"has {name} twice; remove one"


def _unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored. They are left out of a resolved recipe."""
    yield from optim.unused(keys)
    if keys("model.quantize.type") == "int8" and keys("model.quantize.double") is not None:
        yield "model.quantize.double", "has no effect with int8; it is for nf4 and fp4"
    full = keys.absent("model.adapter") and keys.absent("model.beacon")
    if keys("model.dtype") not in (None, "auto") and full:
        yield (
            "model.dtype",
            "has no effect without model.adapter: all weights are trained, and trained weights are stored in float32",
        )
    yield from adapter.unused(keys)
    yield from beacon.unused(keys)
    yield from strategy.unused(keys)
    yield from suite.unused_long_rows(keys, "data.")
    yield from unused_of_corpus(keys, "evaluate.retrieval.data")
    yield from methods.unused(keys)
    stops = keys("train.divergence.action") in (None, "stop") and not keys.is_wrong("train.divergence.action")
    if stops and keys("train.divergence.limit") is not None:
        yield "train.divergence.limit", "has no effect with action: stop; it is for skip and reload"
    if not keys.is_wrong("export.push_to_hub") and keys.absent("export.push_to_hub"):
        for key in ("export.weights", "export.private"):
            if keys(key) is not None:
                yield key, "has no effect without export.push_to_hub"
    if keys("save.keep") is not None and keys.absent("save.every") and keys.absent("save.best"):
        yield "save.keep", "has no effect without save.every: the only checkpoint is that of the last step"
    yield from sources.unused(keys)
