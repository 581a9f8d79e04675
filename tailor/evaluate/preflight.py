"""What an evaluation after training will need, looked at before training: its rows' first ones, and the other models."""

from __future__ import annotations

from tailor.data.token_store import TokenStore
from tailor.encode.format_detection import find_format
from tailor.encode.formats import get_format
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.evaluate import rows
from tailor.evaluate.model_rows import rows_read_by
from tailor.evaluate.models import find_subject
from tailor.evaluate.tasks.base import FirstRows, make_evaluators
from tailor.spec.data import TEXTS
from tailor.spec.recipe import Recipe
from tailor.spec.suite import Suite

PEEK = 20
"""Rows of each set that are read. The others are read after training."""


def check(suite: Suite, recipe: Recipe, tokens: TokenStore) -> None:
    """DataError, ModelError for what the evaluation of the finished run would end with. No model is loaded.

    tokens: the run's.
    """
    on_rows = [task for task in suite.tasks if task.on_rows]
    asks = any(task.generates for task in on_rows)
    if suite.data is not None:
        _check_sources(suite, recipe, asks=asks)
    elif on_rows:
        _check_split(suite, recipe, tokens, asks=asks)
    evaluators = make_evaluators(suite.tasks, "evaluate.final.")
    first = FirstRows(
        recipe.model,
        recipe.data.template,
        plain=tokens.template is None,
        count=PEEK,
        arguments=recipe.data.template_arguments,
    )
    for evaluator in evaluators:
        evaluator.preflight(first)
    for other in suite.compare if isinstance(suite.compare, list) else ():
        if other == "base":
            continue
        subject = find_subject(other)
        for evaluator in evaluators:
            evaluator.check_model(subject)


def _check_sources(suite: Suite, recipe: Recipe, *, asks: bool) -> None:
    """The files and columns of rows of the suite's own."""
    assert suite.data is not None
    kinds = set()
    for at, source in enumerate(suite.data.evaluation):
        key = f"evaluate.final.data.evaluation[{at}]"
        found, _ = find_format(
            source, f"{key} {source.path}", find_files(source, key), rows_read_by(recipe.method)
        )
        kinds.add(get_format(found).rows)
    if asks and kinds == {TEXTS}:
        raise rows.no_question("evaluate.final: ")


def _check_split(suite: Suite, recipe: Recipe, tokens: TokenStore, *, asks: bool) -> None:
    """The run's own evaluation rows."""
    split = tokens.split("evaluation")
    if not len(split):
        raise DataError(
            "evaluate.final: no evaluation row is left after preparation",
            hint="raise data.holdout, or name rows in data.evaluation or evaluate.final.data",
        )
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)
    if asks and not rows.any_question(split, suite.limit, tokenizer, chunked=recipe.data.on_long == "chunk"):
        raise rows.no_question("evaluate.final: ")
