"""Rules between `evaluate.final` and the rest of the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.bounds import parse
from tailor.spec.data import FORMAT_KINDS, TEXTS, Data
from tailor.spec.rules import suite as suite_rules
from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.suite import BASE, UNSCALED
from tailor.spec.tasks.registry import task_class

KEY = "evaluate.final"


def findings(keys: Keys) -> Iterator[Finding]:
    """Problems of the evaluation itself and of its rows. They are reported before training, not after it."""
    if keys(KEY) is None:
        return
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    yield from suite_rules.findings(keys, f"{KEY}.", ("data.max_length", length))
    yield from _base(keys)
    others = keys(f"{KEY}.compare")
    if isinstance(others, list) and UNSCALED in others and keys.absent("model.rope"):
        yield (
            f"{KEY}.compare.{others.index(UNSCALED)}",
            f"{UNSCALED} is the base without model.rope, which the recipe does not set; write {BASE}",
        )
    if keys.is_wrong(f"{KEY}.data") or keys.is_wrong("method.name"):
        return
    names = suite_rules.task_names(keys, f"{KEY}.") or []
    on_rows = [name for name in names if task_class(name).on_rows]
    own_rows = isinstance(keys(f"{KEY}.data"), dict)
    for affected, why in (
        (on_rows, None if own_rows else _no_rows(keys)),
        ([name for name in on_rows if task_class(name).generates], _no_questions(keys, own_rows)),
    ):
        at = next((at for at, name in enumerate(names) if name in affected), None)
        if why is not None and at is not None:
            yield f"{KEY}.tasks.{at}" if keys(f"{KEY}.tasks") else KEY, f"{names[at]} {why}"
            return


def _base(keys: Keys) -> Iterator[Finding]:
    """Conditions and tasks that need the base, where `compare: auto` does not compare with it: the run trains the whole model."""
    bounds = keys(f"{KEY}.fail_if")
    fix = f"which {KEY}.compare: auto does only for an adapter; write compare: base"
    if keys(f"{KEY}.compare") not in (None, "auto") or not (
        keys.absent("model.adapter") and keys.absent("model.beacon")
    ):
        return
    for metric, text in bounds.items() if isinstance(bounds, dict) else ():
        bound = parse(text) if isinstance(text, str) else None
        if bound is not None and bound.model == "base" and not keys.is_wrong(f"{KEY}.fail_if.{metric}"):
            yield f"{KEY}.fail_if.{metric}", f"compares with the base, {fix}"
    for at, name in enumerate(suite_rules.task_names(keys, f"{KEY}.") or ()):
        if task_class(name).needs_comparison:
            yield f"{KEY}.tasks.{at}.name", f"{name} compares with the base, {fix}"


def _no_rows(keys: Keys) -> str | None:
    """Why the recipe has no rows to evaluate on. None if it has."""
    if keys.absent("data.evaluation") and keys.absent("data.holdout"):
        return "needs rows: set evaluate.final.data, data.holdout or data.evaluation"
    method = keys.method
    if method is not None and method.compares_answers:
        return (
            "needs evaluate.final.data: the recipe's own evaluation rows are preference data, without a single "
            "correct answer"
        )
    if method is not None and method.embedding is not None:
        return "needs evaluate.final.data: the recipe's own evaluation rows contain texts to embed"
    return None


def _no_questions(keys: Keys, own_rows: bool) -> str | None:
    """Why no row has a prompt for which an answer could be generated. None if there are such rows."""
    if keys("method.train_on") == "everything":
        return (
            "needs prompts, but with method.train_on: everything a row has none; use only the task perplexity"
        )
    section = "data.evaluation" if keys.absent("data.holdout") else "data.train"
    section = f"{KEY}.data.evaluation" if own_rows else section
    kinds = {FORMAT_KINDS.get(keys(f"{key}.format")) for key, _ in keys.sources(section)}
    if own_rows and kinds == {TEXTS}:
        return "needs prompts, but plain text has none; set other rows, or use only the task perplexity"
    plain = keys.method is not None and not keys.method.reads_conversations
    if not own_rows and (plain or kinds == {TEXTS}):
        return (
            "needs prompts, but plain text has none; set evaluate.final.data, or use only the task perplexity"
        )
    return None
