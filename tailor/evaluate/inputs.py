"""What each model of an evaluation is given: the same rows, rendered by the model's own template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tailor.data.token_store import MANIFEST, TokenStore
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate import grid, rows
from tailor.evaluate.grid import Hunt
from tailor.evaluate.jobs import Job, embedding, finding, generating, reading, scoring
from tailor.evaluate.models import Subject
from tailor.evaluate.retrieval.collection import Collection, read_collection
from tailor.evaluate.rows import Choice, LongText, Passage, Question
from tailor.layout import DATA_REPORT
from tailor.spec.data import Data
from tailor.spec.long import LongPerplexity, Needle, Passkey
from tailor.spec.methods import Method
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.spec.suite import GENERATED, ON_ROWS, Facts, MultipleChoice, Retrieval, Suite
from tailor.store import Store

DEFAULT_LENGTH = 2048
Prepare = Callable[[Data, Model, Method], TokenStore]
"""(data, model whose tokenizer is taken, method that reads the rows) -> tokens, made or reused."""


@dataclass(frozen=True)
class Material:
    """The rows of one model."""

    tokenizer: Tokenizer
    passages: list[Passage] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    facts: list[Question] = field(default_factory=list)
    hunts: dict[str, list[Hunt]] = field(default_factory=dict)
    """Task -> its prompts with a hidden value."""
    texts: list[LongText] = field(default_factory=list)
    short: int = 0
    """Texts that were left out, for they are shorter than the longest length asked for."""
    available: int | None = None
    """Evaluation rows that there are, of which `limit` were taken."""
    cut: int = 0
    """Rows that were not answered, because `on_long: chunk` cut them."""
    collection: Collection | None = None
    dimension: int | None = None
    """Of the collection's embeddings, where it is not the model's own."""

    def jobs(self, model: str, batch_size: int) -> list[Job]:
        """The work on these rows, in a fixed order."""
        passages = [sequence for passage in self.passages for sequence in passage.sequences]
        choices = [sequence for choice in self.choices for sequence in choice.sequences]
        return [
            *scoring(model, "passages", passages, batch_size),
            *scoring(model, "choices", choices, batch_size),
            *generating(model, "questions", [one.prompt for one in self.questions], batch_size),
            *generating(model, "facts", [one.prompt for one in self.facts], batch_size),
            *reading(model, "texts", [window for text in self.texts for window in text.windows]),
            *(job for task, found in self.hunts.items() for job in finding(model, task, found, batch_size)),
            *self._embedding(model),
        ]

    def _embedding(self, model: str) -> list[Job]:
        if self.collection is None:
            return []
        return [
            *embedding(model, "queries", self.collection.queries, self.dimension),
            *embedding(model, "corpus", self.collection.corpus, self.dimension),
        ]

    def places(self) -> list[Any]:
        """Where the rows stand: the same for all models that are compared."""
        hunts = [one.place for found in self.hunts.values() for one in found]
        rows = (*self.passages, *self.questions, *self.choices, *self.facts, *self.texts)
        return [*(one.place for one in rows), *hunts]


def gather(suite: Suite, main: Subject, others: list[Subject], prepare: Prepare) -> dict[str, Material]:
    """The rows of every model, by its label. Raises DataError and what preparation raises."""
    searched = next((task for task in suite.tasks if isinstance(task, Retrieval)), None)
    collection = None
    if searched is not None:
        where = f"tasks[{suite.tasks.index(searched)}].data"
        collection = read_collection(
            searched.data, where, searched.query_instruction, searched.corpus_instruction
        )

    def of(subject: Subject) -> Material:
        found = _of(suite, subject, main, prepare)
        return (
            found if searched is None else replace(found, collection=collection, dimension=searched.dimension)
        )

    first = of(main)
    found = {main.label: first}
    for other in others:
        own = first if other.artifact.url == main.artifact.url else of(other)
        if own is not first and own.places() != first.places():
            raise DataError(
                f"compare: {other.ref.url} keeps other rows than {main.ref.url}, so that their figures could not "
                f"be compared ({_first_difference(first.places(), own.places())})",
                hint="raise max_length, or evaluate the two by themselves",
            )
        found[other.label] = own
    return found


def _of(suite: Suite, subject: Subject, main: Subject, prepare: Prepare) -> Material:
    names = {task.name for task in suite.tasks}
    tokenizer = subject.tokenizer()
    passages: list[Passage] = []
    questions: list[Question] = []
    choices: list[Choice] = []
    facts: list[Question] = []
    texts: list[LongText] = []
    hunts: dict[str, list[Hunt]] = {}
    available, cut, short = None, 0, 0
    if names & set(ON_ROWS):
        tokens = _tokens(suite, subject, main, tokenizer, prepare)
        split = tokens.split("evaluation")
        available = len({*zip(split.source.tolist(), split.row.tolist(), strict=True)})
        if "perplexity" in names:
            passages = rows.passages(split, suite.limit)
        if names & set(ON_ROWS) & set(GENERATED):
            chunked = _on_long(suite, main) == "chunk"
            questions, cut = rows.questions(split, suite.limit, tokenizer, tokens.template, chunked=chunked)
    plain = not _converses(subject, tokenizer)
    for at, task in enumerate(suite.tasks):
        if isinstance(task, MultipleChoice):
            choices = rows.choices(task.data, f"tasks[{at}].data", tokenizer, plain=plain)
        if isinstance(task, Facts):
            facts = rows.fact_questions(task.data, f"tasks[{at}].data", tokenizer, plain=plain)
        where = f"tasks[{at}].data"
        if isinstance(task, LongPerplexity):
            texts, short = rows.long_texts(task, where, tokenizer)
        if isinstance(task, Passkey):
            hunts[task.name] = grid.hunts(task, [task.filler], tokenizer, plain=plain)
        if isinstance(task, Needle):
            hay = [text for _, text in rows.texts(task.data, where)]
            hunts[task.name] = grid.hunts(task, hay, tokenizer, plain=plain)
    found = Material(tokenizer, passages, questions, choices, facts, hunts, texts, short, available, cut)
    _check_room(found, subject)
    return found


def _tokens(
    suite: Suite, subject: Subject, main: Subject, tokenizer: Tokenizer, prepare: Prepare
) -> TokenStore:
    """Tokens whose evaluation split holds the rows."""
    recipe = main.recipe
    if suite.data is not None:
        own = (
            recipe.data.max_length
            if recipe is not None
            else min(DEFAULT_LENGTH, subject.positions() or DEFAULT_LENGTH)
        )
        # Preparation takes rows without any to train on; a recipe does not.
        data = Data.model_construct(
            train=[],
            evaluation=suite.data.evaluation,
            max_length=suite.data.max_length or own,
            on_long=suite.data.on_long,
            chunk=suite.data.chunk,
            retrieve=suite.data.retrieve,
            budget=suite.data.budget,
        )
        return prepare(
            data, Model(path=str(subject.artifact.local_path())), rows_read_by(recipe and recipe.method)
        )
    if main.run is None or recipe is None:
        raise DataError(
            f"{main.ref.url} is no run, so it has no evaluation rows of its own",
            hint="name rows in an evaluation file, as data: {evaluation: [{path: …}]}, and give it by --with",
        )
    if not recipe.data.evaluation and recipe.data.holdout is None:
        raise DataError(
            f"the run at {main.run.url} has no evaluation rows: its recipe has neither data.evaluation nor data.holdout",
            hint="name rows in an evaluation file, as data: {evaluation: [{path: …}]}, and give it by --with",
        )
    if recipe.method.compares_answers:
        raise DataError(
            f"the run at {main.run.url} learned from answers to compare, and no row of them is right or wrong by itself",
            hint="name rows in an evaluation file, as data: {evaluation: [{path: …}]}, and give it by --with",
        )
    if recipe.method.embedding is not None:
        raise DataError(
            f"the evaluation rows of the run at {main.run.url} are texts to embed too, which are no answers",
            hint="name rows in an evaluation file, as data: {evaluation: [{path: …}]}, and give it by --with",
        )
    url = main.run.read_json(DATA_REPORT)["tokens"]
    if Store(url).exists(MANIFEST):
        tokens = TokenStore.open(url)
    else:
        tokens = prepare(recipe.data, recipe.model, recipe.method)
    if subject is main or _rendered_alike(tokens, tokenizer):
        return tokens
    data = recipe.data.model_copy(update={"template": None})
    return prepare(data, Model(path=str(subject.artifact.local_path())), recipe.method)


def rows_read_by(method: Method | None) -> Sft:
    """How the suite's own rows are read, for a model that `method` made. Without one, answers are supervised; so they are
    after pretrain, which has no answers of its own."""
    return Sft(name="sft", train_on="assistant" if method is None else method.supervised_turns)


def _on_long(suite: Suite, main: Subject) -> str:
    if suite.data is not None:
        return suite.data.on_long
    return main.recipe.data.on_long if main.recipe is not None else "drop"


def _rendered_alike(tokens: TokenStore, tokenizer: Tokenizer) -> bool:
    template, own = tokens.template, tokenizer.template
    return tokens.manifest["tokenizer"] == tokenizer.fingerprint and (
        template is None
        or (own is not None and (template["text"], template.get("tool_use")) == (own.text, own.tool_use))
    )


def _converses(subject: Subject, tokenizer: Tokenizer) -> bool:
    """Whether questions go through the chat template: it has one, and was not trained on plain text."""
    if subject.run is not None and subject.run.exists(DATA_REPORT):
        return tokenizer.template is not None and subject.run.read_json(DATA_REPORT)["template"] is not None
    return tokenizer.template is not None


def _check_room(material: Material, subject: Subject) -> None:
    positions = subject.positions()
    if positions is None:
        return
    if not subject.goes_beyond:
        asked = [hunt.place["length"] for found in material.hunts.values() for hunt in found]
        asked += [window.length for text in material.texts for window in text.windows]
        if asked and max(asked) > positions:
            raise DataError(
                f"{subject.ref.url} was made for {positions} positions and has no others, and lengths has {max(asked)}",
                hint=f"give lengths of at most {positions}",
            )
    lengths = [(one.place, len(one.prompt) + 1) for one in (*material.questions, *material.facts)]
    lengths += [
        (one.place, len(sequence.ids))
        for one in (*material.passages, *material.choices)
        for sequence in one.sequences
    ]
    for place, length in lengths:
        if length > positions:
            raise DataError(
                f"row {place['row']} of source {place['source']} needs {length} tokens, and {subject.ref.url} was "
                f"made for {positions} positions",
                hint="shorten the row, or lower data.max_length",
            )


def _first_difference(left: list[Any], right: list[Any]) -> str:
    for one, other in zip(left, right, strict=False):
        if one != other:
            return f"row {one['row']} of source {one['source']}, for example"
    return f"{len(left)} rows and {len(right)}"
