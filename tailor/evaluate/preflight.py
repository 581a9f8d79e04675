"""Preflight checks of `evaluate.final`: before training, the first rows of each task and the compared models are checked."""

from __future__ import annotations

from tailor.data.token_store import TokenStore
from tailor.encode.format_detection import find_format
from tailor.encode.formats import get_format
from tailor.encode.source_list import Sources
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import model_tokenizer
from tailor.errors import DataError
from tailor.evaluate import source_rows, strata
from tailor.evaluate.model_rows import rows_read_by
from tailor.evaluate.models import find_model
from tailor.evaluate.question import no_question, select
from tailor.evaluate.retrieval.collection import check_collection
from tailor.evaluate.tasks.base import FirstRows, make_evaluators
from tailor.spec.data import TEXTS
from tailor.spec.recipe import Recipe
from tailor.spec.suite import BASE, UNSCALED, Suite
from tailor.spec.tasks.retrieval import Searched
from tailor.spec.tasks.rows import Questions

COLUMN_ROWS = 1000
"""Rows of each source among which one must have the column of `by`."""
PEEK = 20
"""Rows of each data set that are checked before training. All rows are read after training."""


def check(suite: Suite, recipe: Recipe, *, plain: bool) -> None:
    """Check the evaluation that follows the run. DataError or ModelError for what would make it fail after training.

    No model is loaded, and the run's data need not be prepared. plain: whether its rows have no chat template.
    """
    on_rows = [task for task in suite.tasks if task.on_rows]
    if suite.data is not None:
        _check_sources(suite, recipe, needs_questions=any(task.generates for task in on_rows))
    if suite.by is not None and on_rows:
        given = suite.data.evaluation if suite.data is not None else recipe.data.evaluation
        rows_of = source_rows.first(given or recipe.data.train, "data", COLUMN_ROWS)
        strata.require_column(suite.by, rows_of, "evaluate.final.")
    evaluators = make_evaluators(suite.tasks, "evaluate.final.")
    first = FirstRows(
        recipe.model,
        recipe.data.template,
        plain=plain,
        count=PEEK,
        arguments=recipe.data.template_arguments,
    )
    for evaluator in evaluators:
        evaluator.preflight(first)
        data = getattr(evaluator.spec, "data", None)
        if isinstance(data, Questions) and data.by is not None:
            own = source_rows.first([data], f"{evaluator.key}.data", COLUMN_ROWS)
            strata.require_column(data.by, own, f"{evaluator.key}.data.")
    for other in suite.compare if isinstance(suite.compare, list) else ():
        if other in (BASE, UNSCALED):
            continue
        model = find_model(other)
        for evaluator in evaluators:
            evaluator.check_model(model)


def check_generation(sources: Sources) -> None:
    """DataError if `evaluate.generation` would find no question: all rows to evaluate on are plain texts."""
    read = sources.evaluation or sources.train
    if all(get_format(one.format).rows == TEXTS for one in read):
        raise no_question("evaluate.generation: ", instead="remove evaluate.generation")


def check_retrieval(searched: Searched) -> None:
    """DataError for a collection of `evaluate.retrieval` that cannot be searched during training."""
    check_collection(searched.data, "evaluate.retrieval.data", PEEK)


def _check_sources(suite: Suite, recipe: Recipe, *, needs_questions: bool) -> None:
    """Check the files and columns of `evaluate.final.data`."""
    assert suite.data is not None
    kinds = set()
    for at, source in enumerate(suite.data.evaluation):
        key = f"evaluate.final.data.evaluation[{at}]"
        found, _ = find_format(
            source, f"{key} {source.path}", find_files(source, key), rows_read_by(recipe.method)
        )
        kinds.add(get_format(found).rows)
    if needs_questions and kinds == {TEXTS}:
        raise no_question("evaluate.final: ")


def reads_split(suite: Suite) -> bool:
    """Whether a task reads the run's own evaluation rows."""
    return suite.data is None and any(task.on_rows for task in suite.tasks)


def check_split(suite: Suite, recipe: Recipe, tokens: TokenStore) -> None:
    """Check the run's own evaluation rows, as they were prepared, if a task reads them."""
    if not reads_split(suite):
        return
    split = tokens.split("evaluation")
    if not len(split):
        raise DataError(
            "evaluate.final: no evaluation row remains after data preparation",
            hint="raise data.holdout, or give rows in data.evaluation or evaluate.final.data",
        )
    tokenizer = model_tokenizer(recipe.model)
    if any(task.generates for task in suite.tasks if task.on_rows):
        selection = select(split, tokenizer, rows=suite.limit, questions=1)
        if not selection.asked:
            raise no_question("evaluate.final: ", selection.cut)
