"""Models that are averaged must read and render text alike, because the average gets the tokenizer of the first."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.encode.tokenizer_files import own_files
from tailor.errors import ModelError

HINT = "average models that were trained with one tokenizer and one chat template"


def require_same_tokenizers(folders: Sequence[Path], urls: Sequence[str]) -> str | None:
    """ModelError when tokenizers or chat templates differ. Folders without a tokenizer use that of their base.

    A model without a chat template, such as the base of a chat model, agrees with any. Returns a warning for the user when
    the first has none and another has one.
    """
    having = [
        (url, load_tokenizer(str(folder)))
        for folder, url in zip(folders, urls, strict=True)
        if own_files(folder)
    ]
    for (first_url, first), (url, other) in itertools.combinations(having, 2):
        if (difference := _difference(first, other)) is not None:
            raise ModelError(f"{first_url} and {url} have different {difference}", hint=HINT)
    if having and having[0][1].template is None:
        better = next((url for url, one in having if one.template is not None), None)
        if better is not None:
            return f"the average has no chat template, as {having[0][0]}: name {better} first to get its template"
    return None


def _difference(first: Tokenizer, other: Tokenizer) -> str | None:
    """What differs, for a message; None when both give the same token ids and conversations."""
    added = [{(number, token.content) for number, token in one.added.items()} for one in (first, other)]
    if odd := added[0] ^ added[1]:
        number, token = min(odd)
        return f"added tokens: {token!r} is token {number} of only one of them"
    ends = [(one.specials.get("bos_token"), one.specials.get("eos_token")) for one in (first, other)]
    if ends[0] != ends[1]:
        return f"BOS or EOS tokens: {ends[0]} and {ends[1]}"
    if _ids(first) != _ids(other):
        return "tokenizers"
    templates = [one.template and (one.template.text, one.template.tool_use) for one in (first, other)]
    return None if None in templates or templates[0] == templates[1] else "chat templates"


def _ids(tokenizer: Tokenizer) -> str:
    """The fingerprint, without settings that do not change the ids of a text: padding, its token, and a maximum length."""
    content = {**json.loads(tokenizer.content), "truncation": None, "padding": None}
    config = {key: value for key, value in tokenizer.config.items() if key != "pad_token"}
    return Tokenizer(tokenizer.name, json.dumps(content), config, None).fingerprint
