"""Rules of method rerank."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.registry import task_class


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Pairs of keys that cannot be used together."""
    if keys("data.on_long") in ("chunk", "retrieve"):
        yield (
            "data.on_long",
            "method.name",
            "a passage has one score, so it must stay whole; use drop or truncate",
        )
    if keys("model.warm_start") is not None:
        yield (
            "model.warm_start",
            "method.name",
            "a reranker starts from a base model; to train one further, set model.path to its model",
        )
    for key in ("model.beacon", "model.add_tokens"):
        if keys(key):
            yield key, "method.name", f"it is tested only with models that generate; remove {key}"
    if keys("model.attention") == "flash_attention_2":
        yield "model.attention", "method.name", "pairs are padded, not packed; set model.attention: auto"
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            "method.name",
            "a reranker only scores pairs of texts; remove evaluate.generation",
        )
    if keys("evaluate.final") is not None:
        yield from _final(keys)


def _final(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """The final evaluation scores with the saved model, and only a task for rerankers."""
    if keys("model.adapter") is not None:
        yield (
            "evaluate.final",
            "model.adapter",
            "a reranker's adapter is evaluated after `tailor merge`; remove evaluate.final, and use `tailor evaluate` then",
        )
    for at, task in enumerate(suite.task_names(keys, "evaluate.final.") or ()):
        if not task_class(task).ranks:
            key = f"evaluate.final.tasks.{at}.name" if keys("evaluate.final.tasks") else "evaluate.final"
            yield (
                key,
                "method.name",
                f"a reranker only scores pairs of texts, and {task} needs more; use the task reranking",
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
