"""Changes to the tokenizer of tokenizer.json: added tokens, offsets, and leading spaces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken


def token_text(value: Any) -> str | None:
    """The text of a special token, which the configuration gives as a string or as the fields of an AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def with_named_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Add the tokens of tokenizer_config.json that tokenizer.json lacks, in the same order as transformers."""
    backend.no_truncation()
    backend.no_padding()
    known = set(backend.get_vocab(with_added_tokens=True))
    decoder = config.get("added_tokens_decoder") or {}
    for _, fields in sorted(decoder.items(), key=lambda item: int(item[0])):
        if fields["content"] not in known:
            backend.add_tokens(
                [AddedToken(**{key: value for key, value in fields.items() if key != "__type"})]
            )
    extras = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [token_text(value) for key, value in config.items() if key.endswith("_token")]
    named += [token_text(value) for value in (extras.values() if isinstance(extras, dict) else extras)]
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in named if text and text not in known]
    )
    return backend


def with_added_tokens(
    content: str, config: dict[str, Any], added: Mapping[int, AddedToken]
) -> tuple[str, dict[str, Any]]:
    """The content of tokenizer.json and tokenizer_config.json with these added tokens in place of theirs, by id."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    fields = {
        number: {name: getattr(token, name) for name in names} for number, token in sorted(added.items())
    }
    entries = [{"id": number, **values} for number, values in fields.items()]
    content = json.dumps({**json.loads(content), "added_tokens": entries}, indent=2, ensure_ascii=False)
    if config.get("added_tokens_decoder"):
        config = {
            **config,
            "added_tokens_decoder": {str(number): values for number, values in fields.items()},
        }
    return content, config


def without_side_effects(content: dict[str, Any]) -> dict[str, Any]:
    # With trimmed offsets one could not see that a token crosses the boundary between prompt and answer. Ids stay the same.
    return _edit(content, ("pre_tokenizer", "post_processor"), {"trim_offsets": False})


def without_leading_space(content: dict[str, Any]) -> dict[str, Any]:
    # `add_prefix_space` of the post-processor only concerns offsets, so it is kept.
    changed = _edit(
        content, ("normalizer", "pre_tokenizer"), {"add_prefix_space": False, "prepend_scheme": "never"}
    )
    normalizer = changed.get("normalizer")
    if normalizer and normalizer["type"] == "Prepend":
        changed["normalizer"] = None
    elif normalizer and normalizer["type"] == "Sequence":
        kept = [part for part in normalizer["normalizers"] if part["type"] != "Prepend"]
        changed["normalizer"] = {**normalizer, "normalizers": kept}
    return changed


def _edit(content: dict[str, Any], parts: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """A copy with these keys set at every depth of the named parts of tokenizer.json."""

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: values.get(key, visit(value)) for key, value in node.items()}
        return [visit(value) for value in node] if isinstance(node, list) else node

    return {key: visit(value) if key in parts else value for key, value in content.items()}
