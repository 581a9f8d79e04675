"""What an evaluation after training will need, looked at before training: its rows' first ones, and the other models."""

from __future__ import annotations

from tailor.data.token_store import TokenStore
from tailor.encode.format_detection import find_format
from tailor.encode.formats import get_format
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.evaluate import rows
from tailor.evaluate.inputs import rows_read_by
from tailor.evaluate.models import find_subject
from tailor.evaluate.retrieval.collection import check_collection
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.spec.data import TEXTS
from tailor.spec.long import LongPerplexity, Needle
from tailor.spec.recipe import Recipe
from tailor.spec.suite import GENERATED, ON_ROWS, Facts, MultipleChoice, Retrieval, Suite

PEEK = 20
"""Rows of each set that are read. The others are read after training."""


def check(suite: Suite, recipe: Recipe, tokens: TokenStore) -> None:
    """DataError, ModelError for what the evaluation of the finished run would end with. No model is loaded.

    tokens: the run's.
    """
    on_rows = {task.name for task in suite.tasks} & set(ON_ROWS)
    if suite.data is not None:
        _check_sources(suite, recipe, asks=bool(on_rows & set(GENERATED)))
    elif on_rows:
        _check_split(suite, recipe, tokens, asks=bool(on_rows & set(GENERATED)))
    _check_tasks(suite, recipe, tokens)
    for other in suite.compare if isinstance(suite.compare, list) else ():
        if other == "base":
            continue
        url = find_subject(other).artifact.url
        if any(isinstance(task, Retrieval) for task in suite.tasks):
            require_embeddings(url)


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
    if asks and not rows.has_question(split, suite.limit, chunked=recipe.data.on_long == "chunk"):
        raise rows.no_question("evaluate.final: ")


def _check_tasks(suite: Suite, recipe: Recipe, tokens: TokenStore) -> None:
    """The rows that tasks bring."""
    model, plain = recipe.model, tokens.template is None
    for at, task in enumerate(suite.tasks):
        where = f"evaluate.final.tasks[{at}].data"
        if isinstance(task, Retrieval):
            check_collection(task.data, where, PEEK)
        elif isinstance(task, MultipleChoice | Facts | LongPerplexity | Needle):
            first = task.data.model_copy(update={"limit": min(task.data.limit or PEEK, PEEK)})
            if isinstance(task, LongPerplexity | Needle):
                list(rows.texts(first, where))
                continue
            read = rows.choices if isinstance(task, MultipleChoice) else rows.fact_questions
            tokenizer = load_tokenizer(model.path, model.revision, recipe.data.template)
            read(first, where, tokenizer, plain=plain)
