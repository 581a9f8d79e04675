"""Rules of method rerank."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys

_ALL_WEIGHTS = "a reranker is trained with all its weights"


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Pairs of keys that cannot be used together."""
    if keys("data.on_long") in ("chunk", "retrieve"):
        yield (
            "data.on_long",
            "method.name",
            "a passage has one score, so it must stay whole; use drop or truncate",
        )
    for key in ("model.adapter", "model.warm_start"):
        if keys(key) is not None:
            yield key, "method.name", f"{_ALL_WEIGHTS}, from a base model; remove {key}"
    if keys("model.attention") == "flash_attention_2":
        yield "model.attention", "method.name", "pairs are padded, not packed; set model.attention: auto"
    if keys("train.compile"):
        yield (
            "train.compile",
            "method.name",
            "pairs have many lengths, and each length would be compiled; remove train.compile",
        )
    for key in ("evaluate.generation", "evaluate.final"):
        if keys(key) is not None:
            yield (
                key,
                "method.name",
                f"a reranker only scores pairs of texts, and its evaluation rows give NDCG@10; remove {key}",
            )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys."""
    if keys("method.ranking_weight") == 0 and keys("method.distillation") is None:
        yield "method.ranking_weight", "is 0 without method.distillation, so that nothing would be trained"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    if keys("data.pack") is not None:
        yield "data.pack", "has no effect with rerank: its pairs are padded"
    kind = keys("method.distillation")
    if kind is None:
        for name in ("distillation_weight", "teacher_temperature"):
            if keys(f"method.{name}") is not None:
                yield f"method.{name}", "has no effect without method.distillation"
    elif keys("method.ranking_weight") == 0 and keys("method.loss") is not None:
        yield "method.loss", "has no effect with ranking_weight: 0"
    if kind == "margin_mse" and keys("method.teacher_temperature") is not None:
        yield "method.teacher_temperature", "has no effect with distillation: margin_mse"
