"""Rules of method gritlm."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys

_EMBEDDING = (
    "pooling",
    "projection",
    "normalize",
    "attention",
    "window",
    "temperature",
    "group_size",
    "negatives",
    "embedding_gradients",
    "symmetric",
    "mask_duplicates",
    "false_negative_margin",
    "matryoshka",
    "distillation",
    "distillation_weight",
    "contrastive_weight",
    "teacher_temperature",
    "embedding_weight",
    "embedding_batch_size",
    "batch_by",
    "no_duplicates",
    "chunk_size",
    "engine",
    "kept_chunks",
    "max_query_length",
    "max_passage_length",
)
_CONTRASTIVE = ("negatives", "symmetric", "mask_duplicates", "false_negative_margin", "no_duplicates")
"""Keys that only the contrastive loss reads."""
_GENERATIVE = (
    "generative_attention",
    "generative_normalization",
    "generative_weight",
    "generative_batch_size",
    "train_on",
    "label_smoothing",
    "z_loss",
    "neftune_alpha",
)


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Pairs of keys that cannot be used together."""
    mode = keys("method.mode") or "unified"
    if keys("data.on_long") in ("chunk", "retrieve") and mode != "generative":
        yield (
            "data.on_long",
            "method.name",
            "a text to embed must stay whole, because it has one embedding; use drop or truncate",
        )
    if keys("method.negatives") == "local" and isinstance(keys("scale.workers"), dict):
        yield (
            "method.negatives",
            "scale.workers",
            "the loss would depend on the number of workers, which may change; write scale.workers as one number",
        )
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            "method.name",
            "the evaluation rows contain texts to embed, which have no answers; generate with evaluate.final or tailor evaluate",
        )
    if keys("method.generative_attention") == "prefix_lm" and "lm_eval" in (
        suite.task_names(keys, "evaluate.final.") or ()
    ):
        yield (
            "method.generative_attention",
            "evaluate.final.tasks",
            "lm-eval does not mark where a prompt ends; remove the task lm_eval",
        )
    if keys("method.negatives") == "hard":
        if keys("method.symmetric"):
            yield (
                "method.symmetric",
                "method.negatives",
                "with hard negatives, queries are not contrasted with each other; remove method.symmetric",
            )
        if keys("method.group_size") == 1:
            yield (
                "method.negatives",
                "method.group_size",
                "a group of 1 has no negatives; raise method.group_size",
            )
    if keys("method.distillation") and keys("method.group_size") == 1:
        yield (
            "method.distillation",
            "method.group_size",
            "a teacher's scores are compared within a group, and a group of 1 has one passage; raise method.group_size",
        )
    longest = keys("method.projection")
    for length in keys("method.matryoshka") or ():
        if longest and isinstance(length, int) and length >= longest:
            yield (
                "method.matryoshka",
                "method.projection",
                f"dimension {length} is not smaller than the full dimension of {longest}; remove it from method.matryoshka",
            )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys, or are wrong by themselves."""
    if keys("method.generative_normalization") == "mixed" and keys.absent("train.micro_batch_size"):
        yield (
            "method.generative_normalization",
            "mixed needs train.micro_batch_size: it averages over this many sequences at a time",
        )
    if keys("method.generative_attention") == "prefix_lm" and keys("method.train_on") != "last_assistant":
        yield (
            "method.generative_attention",
            "prefix_lm needs method.train_on: last_assistant: its prompt is everything before the one answer that is learned",
        )
    lengths = keys("method.matryoshka") or []
    for length in sorted({length for length in lengths if lengths.count(length) > 1}):
        yield "method.matryoshka", f"has {length} twice; remove one"
    if keys("model.warm_start") is not None and keys("method.projection") is not None:
        yield "model.warm_start", "cannot load a projection from another run; remove method.projection"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    batches = "set method.embedding_batch_size and method.generative_batch_size"
    for key in ("train.batch_size", "train.batch_tokens"):
        if keys(key) is not None:
            yield key, f"has no effect with gritlm; {batches}"
    if keys("data.pack") is not None:
        yield (
            "data.pack",
            "has no effect with gritlm: its sequences are always concatenated without padding, and its batch sizes count sequences",
        )
    mode = keys("method.mode")
    if mode in ("embedding", "generative"):
        for name in _GENERATIVE if mode == "embedding" else _EMBEDDING:
            if keys(f"method.{name}") not in (None, []):
                yield f"method.{name}", f"has no effect with mode: {mode}"
    if mode == "embedding" and keys("train.micro_batch_size") is not None:
        yield (
            "train.micro_batch_size",
            "has no effect with method.mode embedding; set method.chunk_size, the number of texts in one forward pass",
        )
    kind = keys("method.distillation")
    if kind is None and mode != "generative":
        for name in ("distillation_weight", "contrastive_weight", "teacher_temperature"):
            if keys(f"method.{name}") is not None:
                yield f"method.{name}", "has no effect without method.distillation"
    if kind is not None and keys("method.contrastive_weight") == 0:
        for name in _CONTRASTIVE:
            if keys(f"method.{name}") is not None:
                yield f"method.{name}", "has no effect with contrastive_weight: 0"
    if kind == "margin_mse" and keys("method.teacher_temperature") is not None:
        yield (
            "method.teacher_temperature",
            "has no effect with distillation: margin_mse; use method.temperature",
        )
    if keys("method.negatives") == "hard" and keys("method.no_duplicates"):
        yield (
            "method.no_duplicates",
            "has no effect with negatives: hard, which uses no passage of another row",
        )
    if keys("method.attention") == "causal" and keys("method.window") is not None:
        yield "method.window", "has no effect with attention: causal"
