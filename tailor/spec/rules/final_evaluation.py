"""The rules between the evaluation of the finished run (`evaluate.final`) and the rest of its recipe."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import FORMAT_KINDS, TEXTS
from tailor.spec.rules import suite as suite_rules
from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.registry import task_class

KEY = "evaluate.final"


def findings(keys: Keys) -> Iterator[Finding]:
    """What is wrong with the evaluation itself, and with its rows: training should not go before such news."""
    if keys(KEY) is None:
        return
    yield from suite_rules.findings(keys, f"{KEY}.")
    if keys.is_wrong(f"{KEY}.data") or keys.is_wrong("method.name"):
        return
    names = suite_rules.task_names(keys, f"{KEY}.") or []
    on_rows = [name for name in names if task_class(name).on_rows]
    own_rows = isinstance(keys(f"{KEY}.data"), dict)
    for wanted, why in (
        (on_rows, None if own_rows else _no_rows(keys)),
        ([name for name in on_rows if task_class(name).generates], _no_questions(keys, own_rows)),
    ):
        at = next((at for at, name in enumerate(names) if name in wanted), None)
        if why is not None and at is not None:
            yield f"{KEY}.tasks.{at}" if keys(f"{KEY}.tasks") else KEY, f"{names[at]} {why}"
            return


def _no_rows(keys: Keys) -> str | None:
    """Why the recipe has no rows that can be evaluated on."""
    if keys.absent("data.evaluation") and keys.absent("data.holdout"):
        return "needs rows: give evaluate.final.data, data.holdout or data.evaluation"
    method = keys.method
    if method is not None and method.compares_answers:
        return (
            "needs evaluate.final.data: the recipe's own evaluation rows are answers to compare, none of which is "
            "right or wrong by itself"
        )
    if method is not None and method.embedding is not None:
        return "needs evaluate.final.data: the recipe's own evaluation rows are texts to embed too"
    return None


def _no_questions(keys: Keys, own_rows: bool) -> str | None:
    """Why no row has a question that an answer could be generated to."""
    if keys("method.train_on") == "everything":
        return (
            "needs questions, and with method.train_on: everything a row is all answer; take perplexity alone"
        )
    section = "data.evaluation" if keys.absent("data.holdout") else "data.train"
    section = f"{KEY}.data.evaluation" if own_rows else section
    kinds = {FORMAT_KINDS.get(keys(f"{key}.format")) for key, _ in keys.sources(section)}
    if own_rows and kinds == {TEXTS}:
        return "needs questions, and plain text has none; give other rows, or take perplexity alone"
    plain = keys.method is not None and not keys.method.reads_conversations
    if not own_rows and (plain or kinds == {TEXTS}):
        return "needs evaluate.final.data with questions: plain text has none; or take perplexity alone"
    return None
