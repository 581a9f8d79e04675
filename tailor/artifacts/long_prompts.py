"""Prompts longer than `data.max_length` at generation: shortened by `data.retrieve` of the run, as its rows were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.artifacts.find import find_artifact
from tailor.artifacts.passage_scorer import scorer_of
from tailor.encode import bm25
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import select
from tailor.layout import PLAN, RECIPE
from tailor.spec.data import Data, Retrieve
from tailor.spec.load import load_recipe, read
from tailor.spec.recipe import Recipe
from tailor.store import Store


@dataclass(frozen=True)
class ShortenedPrompt:
    """A prompt with only some of its passages. ids: its token ids. before: number of tokens of the whole prompt.

    passages, kept: number of passages before the question, and of those that were kept. partly_read: texts longer than the
    embedder's maximum length, whose ends did not count.
    """

    ids: list[int]
    before: int
    passages: int
    kept: int
    partly_read: int

    def line(self) -> str:
        """What was left out, as a line for the user."""
        partly = f"; {self.partly_read:,} texts were longer than the embedder reads" * bool(self.partly_read)
        return (
            f"the prompt of {self.before:,} tokens is over-long: {self.passages - self.kept:,} of its {self.passages:,} "
            f"passages are left out, {len(self.ids):,} tokens remain (data.retrieve of the run){partly}"
        )


class PromptRetrieval:
    """Shortens prompts by `on_long: retrieve` of a run, with the function that shortens its rows."""

    def __init__(self, data: Data) -> None:
        """ModelError when the embedder of `data.retrieve` cannot be used."""
        self._settings, self._max_length = data.retrieve or Retrieve(), data.max_length
        self._scorer = scorer_of(data)

    def shorten(
        self, ids: Sequence[int], tokenizer: Tokenizer, max_new_tokens: int
    ) -> ShortenedPrompt | None:
        """The prompt with its most relevant passages; None for a prompt that fits.

        A prompt is too long when `data.max_length` has no room for it and an answer of `max_new_tokens`, like a row with
        an answer of this length. An answer reserves at most what leaves room for two passages.
        """
        settings = self._settings
        room = self._max_length - max_new_tokens
        room = min(max(room, settings.question + 2 * settings.passage), self._max_length - 1)
        if len(ids) <= room:
            return None
        scorer = self._scorer
        partly_read = scorer.truncated if scorer is not None else 0
        whole = np.array(ids, np.int32)
        found = select(whole, len(ids), room, settings, tokenizer.decode, scorer or bm25.scores)
        if found is None:
            return None
        kept = [int(token) for start, stop in found.parts(len(ids)) for token in ids[start:stop]]
        partly_read = scorer.truncated - partly_read if scorer is not None else 0
        return ShortenedPrompt(kept, len(ids), len(found.passages), len(found.kept), partly_read)


def prompt_retrieval(url: str) -> PromptRetrieval | None:
    """How the run of an artifact shortens long prompts; None without a run, or with another `on_long`.

    RecipeError when the run's recipe cannot be read, ModelError for its embedder.
    """
    _, run = find_artifact(Store(url))
    if not (run.exists(RECIPE) and run.exists(PLAN)):
        return None
    path = run.local_path(RECIPE)
    section = read(path, Recipe).values.get("data")
    if not isinstance(section, dict) or section.get("on_long") != "retrieve":
        return None  # the other keys of a recipe of an earlier version do not matter here
    return PromptRetrieval(load_recipe(path, check_files=False).data)
