"""Lets a run resume when its sources are gone: its tokens are prepared, and no row is read again."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailor.data.token_store import SPLITS, TokenStore, is_readable
from tailor.encode.fingerprint import ENCODE_VERSION
from tailor.encode.sources import find_files
from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import model_tokenizer
from tailor.errors import DataError
from tailor.layout import PLAN
from tailor.onray.planning import tokens_root
from tailor.runs import resume
from tailor.store import Store, run_files, run_folder

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

_DETERMINE = ("data", "model", "method")
"""Sections whose keys determine the tokens."""


@dataclass(frozen=True)
class Kept:
    """The tokens of a run whose sources are gone. reason: why a source cannot be read."""

    tokens: TokenStore
    reason: str

    @property
    def note(self) -> str:
        return f"{self.reason}; the run resumes with the tokens that it has: {self.tokens.url}"


def has_tokens(recipe: Recipe) -> bool:
    """Whether the run that the recipe resumes has the tokens that it needs."""
    return _tokens_of(recipe) is not None


def kept_tokens(recipe: Recipe) -> Kept | None:
    """The tokens of the run that the recipe resumes, if the files of a source are missing or cannot be listed.

    None if all sources have files, or if the recipe, the tokenizer, the chat template or the version of the code would give
    other tokens than those.
    """
    tokens = _tokens_of(recipe)
    reason = None if tokens is None else _missing(recipe)
    return None if tokens is None or reason is None else Kept(tokens, reason)


def _missing(recipe: Recipe) -> str | None:
    data = recipe.data
    found = [
        (f"data.{split}[{at}]", source)
        for split in (*SPLITS, "decontaminate")
        for at, source in enumerate(getattr(data, split) or ())
    ]
    for key, source in found:
        try:
            find_files(source, key)
        except DataError as error:
            return error.message
    return None


def _tokens_of(recipe: Recipe) -> TokenStore | None:
    """The tokens of the run that the recipe resumes, if it would give them again."""
    run = Store(recipe.save.to)
    named = None if recipe.save.resume in ("auto", "never") else recipe.save.resume
    source = run if named is None or resume.has_progress(run) else run_folder.find(named)
    if not run_folder.holds_run(source) or not source.exists(PLAN):
        return None
    if any(
        key.partition(".")[0].partition("[")[0] in _DETERMINE for key in resume.changed_keys(recipe, source)
    ):
        return None
    places = (
        posixpath.join(tokens_root(recipe, run), run_files.plan(source)["fingerprint"]),
        run_files.data_report(source).get("tokens"),
    )
    tokens = next((TokenStore.open(url) for url in places if url and is_readable(url)), None)
    return tokens if tokens is not None and _is_current(tokens, recipe) else None


def _is_current(tokens: TokenStore, recipe: Recipe) -> bool:
    """Whether the tokenizer, the chat template and the code are those that the tokens were prepared with."""
    data, manifest = recipe.data, tokens.manifest
    tokenizer = model_tokenizer(recipe.model, data.template).with_date(data.date)
    if (before := manifest["template"]) is not None:
        tokenizer = with_arguments(tokenizer, data.template_arguments)
        now = tokenizer.require_template()
        if [before.get(key) for key in ("text", "tool_use", "date")] != [now.text, now.tool_use, now.date]:
            return False
    return bool(
        manifest["encode_version"] == ENCODE_VERSION and manifest["tokenizer"] == tokenizer.fingerprint
    )
