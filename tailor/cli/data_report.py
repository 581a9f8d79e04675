"""The report about the prepared data of a recipe: `tailor data report` and `tailor validate --data`."""

from __future__ import annotations

from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from tailor.cli.output import Document, Failure, Raw, failure_of
from tailor.errors import DataError


class Lost(TypedDict):
    """Rows that are left out for one reason: how many, and (file:row, detail) of the first."""

    count: int
    first: list[tuple[str, str]]


class Found(TypedDict):
    """Rows with a property: how many, and (file:row, detail) of the first one."""

    count: int
    first: tuple[str, str]


class Leaked(TypedDict):
    """Evaluation rows that are also training rows: how many, and file:row of the first."""

    count: int
    first: list[str]


class Source(TypedDict):
    """A source of `data.train` or `data.evaluation`. Its counts are rows, unless their names say otherwise."""

    split: str
    index: int
    path: str
    format: str
    format_guessed: bool
    rows: int
    kept: int
    held_out: int
    unreadable: dict[str, Lost]
    dropped: dict[str, Lost]
    removed: NotRequired[dict[str, Lost]]
    """By `data.deduplicate`, `data.decontaminate` and `data.min_length`."""
    truncated: int
    supervised_tokens_cut: int
    prompt_tokens_cut: int
    chunked: int
    pieces: int
    pieces_left_out: int
    retrieved: int
    tokens_passed_over: int
    passages_partly_read: int
    split_conversations: int
    examples: int
    tokens: int
    supervised_tokens: int
    lengths: dict[str, float]
    unused: dict[str, Found]
    """Columns and keys of the rows that the format does not read."""
    changes: dict[str, Found]
    """What the conversion changed."""
    in_training: NotRequired[Leaked]


class Split(TypedDict):
    """The examples of a split. lengths: of an example in tokens, by percentile. histogram: of the lengths."""

    examples: int
    tokens: int
    supervised_tokens: int
    lengths: dict[str, float]
    histogram: dict[str, list[int]]


class Report(Document):
    """The prepared data of a recipe."""

    sources: list[Raw[Source]]
    train: Raw[Split]
    evaluation: Raw[Split]
    notes: list[str]
    template: str | None
    """Name of the chat template, if the data has conversations."""
    end_of_turn: list[str]
    tokens: str
    """Folder of the prepared tokens."""
    reused: bool
    """Whether they were prepared before."""
    error: Failure | None
    """Why training would refuse the data (`data.budget`)."""

    def require(self) -> None:
        """DataError if training would refuse the data."""
        if self.error is not None:
            raise DataError(self.error.message, hint=self.error.hint)


def reported(recipe: Any) -> Report:
    """Prepare a recipe's data and describe it."""
    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.cli.display import Display
    from tailor.encode.prepare import prepare_all
    from tailor.encode.report import check_budget, notes
    from tailor.onray.planning import tokens_root
    from tailor.store import Store

    root = tokens_root(recipe, Store(recipe.save.to))
    with Display() as display:
        display.doing("preparing data")
        prepared = prepare_all(
            recipe.data,
            recipe.model,
            recipe.method,
            root,
            scorer=scorer_of(recipe.data),
            progress=display.preparing,
        )
    counts = prepared.tokens.manifest["report"]
    failure = None
    try:
        check_budget(counts, recipe.data.budget)
    except DataError as error:
        failure = failure_of(error)
    template = prepared.tokens.template
    ends = (template.get("end_of_turn") or map(str, template["end_of_turn_ids"])) if template else []
    return Report(
        sources=counts["sources"],
        train=counts["train"],
        evaluation=counts["evaluation"],
        notes=notes(counts, recipe.data.holdout),
        template=template["name"] if template else None,
        end_of_turn=list(ends),
        tokens=prepared.tokens.url,
        reused=prepared.reused,
        error=failure,
    )
