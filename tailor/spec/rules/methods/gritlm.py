"""The rules between the keys of method gritlm."""

from __future__ import annotations

from collections.abc import Iterator

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
    "symmetric",
    "mask_duplicates",
    "false_negative_margin",
    "matryoshka",
    "embedding_weight",
    "embedding_batch_size",
    "chunk_size",
    "engine",
    "max_query_length",
    "max_passage_length",
)
_GENERATIVE = ("generative_normalization", "generative_weight", "generative_batch_size", "train_on")


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Pairs of keys that cannot stand together, and why."""
    mode = keys("method.mode") or "unified"
    if keys("data.on_long") in ("chunk", "retrieve") and mode != "generative":
        yield (
            "data.on_long",
            "method.name",
            "a text to embed has one embedding, so it cannot be cut into chunks",
        )
    if keys("method.negatives") == "local" and isinstance(keys("scale.workers"), dict):
        yield "method.negatives", "scale.workers", "the loss would change when workers come and go"
    if keys("train.compile"):
        yield "train.compile", "method.name", "texts have many lengths, and each would be compiled"
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            "method.name",
            "it would look for conversations among texts to embed; tailor evaluate RUN --with FILE asks rows of its own",
        )
    if keys("method.negatives") == "hard":
        if keys("method.symmetric"):
            yield (
                "method.symmetric",
                "method.negatives",
                "with hard negatives no query is told from other queries",
            )
        if keys("method.group_size") == 1:
            yield "method.negatives", "method.group_size", "a group of 1 has no negative"
    longest = keys("method.projection")
    for length in keys("method.matryoshka") or ():
        if longest and isinstance(length, int) and length >= longest:
            yield (
                "method.matryoshka",
                "method.projection",
                f"{length} is not shorter than the whole embedding of {longest}",
            )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need others, or are wrong in themselves."""
    if keys("method.generative_normalization") == "mixed" and keys.absent("train.micro_batch_size"):
        yield (
            "method.generative_normalization",
            "mixed needs train.micro_batch_size: its means are over so many sequences",
        )
    lengths = keys("method.matryoshka") or []
    for length in sorted({length for length in lengths if lengths.count(length) > 1}):
        yield "method.matryoshka", f"names {length} twice"
    if keys("model.warm_start") is not None and keys("method.projection") is not None:
        yield "model.warm_start", "takes no projection over; leave method.projection out"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    batches = "method.embedding_batch_size and method.generative_batch_size are its batches"
    for key in ("train.batch_size", "train.batch_tokens"):
        if keys(key) is not None:
            yield key, f"has no effect on gritlm: {batches}"
    if keys("data.pack") is not None:
        yield (
            "data.pack",
            "has no effect on gritlm: sequences lie end to end in any case, and are counted one by one",
        )
    mode = keys("method.mode")
    if mode in ("embedding", "generative"):
        for name in _GENERATIVE if mode == "embedding" else _EMBEDDING:
            if keys(f"method.{name}") not in (None, []):
                yield f"method.{name}", f"has no effect with mode: {mode}"
    if mode == "embedding" and keys("train.micro_batch_size") is not None:
        yield "train.micro_batch_size", "has no effect with mode: embedding; method.chunk_size is for texts"
    if keys("method.attention") == "causal" and keys("method.window") is not None:
        yield "method.window", "has no effect on causal attention"
