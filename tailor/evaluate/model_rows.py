"""The evaluation rows of one model, rendered with the model's own chat template, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from tailor.data.split import Split
from tailor.data.token_store import TokenStore, is_readable
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate import rows, source_rows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import TaskInputs, question_inputs
from tailor.layout import DATA_REPORT
from tailor.spec.data import Data, Source
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.rules.suite import check_rows
from tailor.spec.suite import Suite
from tailor.store import run_files

DEFAULT_LENGTH = 2048
Prepare = Callable[[Data, Model, Method], TokenStore]
"""(data, model whose tokenizer is used, method that reads the rows) -> prepared tokens, new or reused."""


class ModelRows:
    """What a task may read for one model. Rows are prepared lazily, when a task reads them first."""

    def __init__(self, suite: Suite, model: EvaluatedModel, main: EvaluatedModel, prepare: Prepare) -> None:
        """main: the first model of the evaluation, whose run has the evaluation rows."""
        self.model = model
        self._suite, self._main, self._prepare = suite, main, prepare
        self.tokenizer = model.tokenizer()
        self.available: int | None = None
        """Number of evaluation rows before `limit`; None when no task has read them."""

    @property
    def limit(self) -> int | None:
        """Number of evaluation rows to use, from the first; None uses all."""
        return self._suite.limit

    @property
    def sources(self) -> tuple[str, Sequence[Source]]:
        """(key, sources) of the evaluation rows: those of the suite, or of the run."""
        return source_rows.sources_of(self._suite, self._main)

    @cached_property
    def plain(self) -> bool:
        """Whether prompts are plain text: the tokenizer has no chat template, or the run was trained on plain text."""
        run, template = self.model.run, self.tokenizer.template
        if run is not None and run.exists(DATA_REPORT):
            return template is None or run_files.data_report(run)["template"] is None
        return template is None

    @cached_property
    def questions(self) -> TaskInputs:
        """The evaluation rows with a question, each a `Question` with its reference answer.

        `Collected.replies("questions", …)` returns the answers. DataError when no row has a question.
        """
        asked = rows.questions(self.split, self.limit, self.tokenizer, self._tokens.template)
        return question_inputs("questions", asked.found, self.tokenizer, selection=asked.selection)

    @cached_property
    def split(self) -> Split:
        """The tokenized evaluation rows, encoded as for training. DataError when there are none."""
        split = self._tokens.split("evaluation")
        self.available = split.row_count
        return split

    @cached_property
    def _tokens(self) -> TokenStore:
        """Prepared tokens whose evaluation split has the rows."""
        suite, model, main = self._suite, self.model, self._main
        recipe = main.recipe
        if suite.data is not None:
            own = (
                recipe.data.max_length
                if recipe is not None
                else min(DEFAULT_LENGTH, model.positions() or DEFAULT_LENGTH)
            )
            length = suite.data.max_length or own
            check_rows(suite.data, length)
            # model_construct skips validation: a recipe must have training rows, data preparation need not.
            data = Data.model_construct(
                train=[],
                evaluation=suite.data.evaluation,
                max_length=length,
                on_long=suite.data.on_long,
                chunk=suite.data.chunk,
                retrieve=suite.data.retrieve,
                budget=suite.data.budget,
            )
            return self._prepare(
                data, Model(path=str(model.artifact.local_path())), rows_read_by(recipe and recipe.method)
            )
        if main.run is None or recipe is None:
            raise DataError(
                f"{main.ref.url} is not a run, so it has no evaluation rows",
                hint="write data: {evaluation: [{path: …}]} into an evaluation file, and pass it with --with",
            )
        if not recipe.data.evaluation and recipe.data.holdout is None:
            raise DataError(
                f"the run at {main.run.url} has no evaluation rows: its recipe has neither data.evaluation nor data.holdout",
                hint="write data: {evaluation: [{path: …}]} into an evaluation file, and pass it with --with",
            )
        if recipe.method.compares_answers:
            raise DataError(
                f"the run at {main.run.url} was trained on preference data, whose rows have no reference answer to score against",
                hint="write data: {evaluation: [{path: …}]} into an evaluation file, and pass it with --with",
            )
        if recipe.method.embedding is not None:
            raise DataError(
                f"the evaluation rows of the run at {main.run.url} also have texts to embed, which are not answers",
                hint="write data: {evaluation: [{path: …}]} into an evaluation file, and pass it with --with",
            )
        url = run_files.DATA_FILE.read(main.run, DATA_REPORT)["tokens"]
        if is_readable(url):
            tokens = TokenStore.open(url)
        else:
            tokens = self._prepare(recipe.data, recipe.model, recipe.method)
        if model is main or _rendered_alike(tokens, self.tokenizer):
            return tokens
        data = recipe.data.model_copy(update={"template": None})
        return self._prepare(data, Model(path=str(model.artifact.local_path())), recipe.method)


def rows_read_by(method: Method | None) -> Sft:
    """How rows given in the suite are read, for a model that was trained with `method`.

    Without a method, and after pretrain, the assistant turns are supervised.
    """
    return Sft(name="sft", train_on="assistant" if method is None else method.supervised_turns)


def _rendered_alike(tokens: TokenStore, tokenizer: Tokenizer) -> bool:
    template, own = tokens.template, tokenizer.template
    return tokens.manifest["tokenizer"] == tokenizer.fingerprint and (
        template is None
        or (own is not None and (template["text"], template.get("tool_use")) == (own.text, own.tool_use))
    )
