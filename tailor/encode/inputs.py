"""What the rows of a recipe are encoded with: its sources, its tokenizer and its chat template. No row is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.formats import get_format
from tailor.encode.published_embedder import text_format as format_of_base
from tailor.encode.source_list import Sources
from tailor.encode.tasks import batches, split_of, task_of
from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import Tokenizer, model_tokenizer
from tailor.encode.turns import TurnRules, turn_rules
from tailor.errors import DataError
from tailor.spec.data import TEXTS, Data
from tailor.spec.methods.union import Method
from tailor.spec.model import Model

_MAX_BATCHES = 16
"""Batches of rows that are read to see whether the holdout takes no row or all of them."""


@dataclass(frozen=True)
class Inputs:
    """What the rows of a recipe are encoded with. rules: of the chat template; None if no source has conversations."""

    sources: Sources
    tokenizer: Tokenizer
    rules: TurnRules | None
    text_format: TextFormat

    @classmethod
    def of(cls, data: Data, model: Model, method: Method) -> Inputs:
        """Resolve the sources and load the tokenizer.

        Raises DataError (missing or empty sources, columns that fit no format), TemplateError (no chat template, or one that
        cannot be used for training) and ModelError (no readable tokenizer).
        """
        sources = Sources.of(data, method)
        _check_questions(data, method, sources)
        tokenizer = model_tokenizer(model, data.template).with_date(data.date)
        if sources.chats:
            tokenizer = with_arguments(tokenizer, data.template_arguments)
        rules = turn_rules(tokenizer) if sources.chats else None
        return cls(sources, tokenizer, rules, format_of(model, method))


def format_of(model: Model, method: Method) -> TextFormat:
    """The format of the texts that a recipe trains to embed."""
    return GRITLM if method.embedding is None else format_of_base(model.path, model.revision)


def empty_split(sources: Sources, holdout: float) -> tuple[str, int] | None:
    """(split, rows) if the holdout leaves a split without any of the training sources' rows.

    None if both splits have rows, or if the sources have too many rows to read them here.
    """
    seen: set[str] = set()
    rows = read = 0
    for at, resolved in enumerate(sources.train):
        for batch in batches(task_of(resolved, "train", at)):
            seen |= {split_of("train", holdout, one.record) for one in batch}
            rows, read = rows + len(batch), read + 1
            if len(seen) > 1 or read > _MAX_BATCHES:
                return None
    return None if not seen else ("evaluation" if "train" in seen else "train", rows)


def _check_questions(data: Data, method: Method, sources: Sources) -> None:
    """DataError for `on_long: retrieve` when every source is plain text."""
    only_texts = all(get_format(resolved.format).rows == TEXTS for _, _, resolved in sources)
    if data.on_long == "retrieve" and not method.joins and only_texts:
        raise DataError(
            "data.on_long: all sources are plain text, which has no question for which passages could be retrieved",
            hint="set data.on_long: chunk",
        )
