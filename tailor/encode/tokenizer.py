"""The fast (Rust) tokenizer of a model, with its special tokens and chat template. Does not import torch."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken

from tailor import machine
from tailor.encode import word_cache
from tailor.encode.backend import (
    token_text,
    with_added_tokens,
    with_named_tokens,
    without_leading_space,
    without_side_effects,
)
from tailor.encode.model_files import file_reader, parse
from tailor.encode.records import has_surrogate
from tailor.encode.template import Message, Template, load_template, model_template, render
from tailor.encode.token_positions import ByteLengths, Offsets, Positions, byte_lengths, ids_of
from tailor.encode.word_cache import WordCache
from tailor.errors import DataError, ModelError, TemplateError
from tailor.layout import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from tailor.spec.model import Model

_TOOL_USE = "additional_chat_templates/tool_use.jinja"
FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    CHAT_TEMPLATE,
    _TOOL_USE,
)
"""The files that are read from a model folder."""
MAX_CACHE_THREADS = 4
"""The word cache is worth 1.5 to 3 threads of the tokenizer, and uses one itself."""


class NotUnicodeError(DataError, TypeError):
    """A text has a lone surrogate. A TypeError too, as the package `tokenizers` raises."""


def _encoded(encode: Callable[..., list[tokenizers.Encoding]], texts: list[str]) -> list[tokenizers.Encoding]:
    with _unicode(texts):
        return encode(texts, add_special_tokens=False)


@contextmanager
def _unicode(texts: Iterable[str]) -> Iterator[None]:
    """NotUnicodeError instead of the tokenizer's error if one of the texts has a lone surrogate."""
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        if not any(map(has_surrogate, texts)):
            raise
        raise NotUnicodeError(
            "a text contains a character that is not valid Unicode",
            hint="remove the character, or save the text as UTF-8",
        ) from None


class Tokenizer:
    """Encodes text, decodes token ids and renders conversations. Can be pickled: it is rebuilt from the files' content.

    bos_id, eos_id, pad_id: ids or None. prefix, suffix: ids that the tokenizer puts before and after plain text
    (its BOS; [CLS] and [SEP]).
    specials: the special tokens that a chat template can use, such as `bos_token`. vocab_size: the largest id plus 1.
    """

    def __init__(self, name: str, content: str, config: dict[str, Any], template: Template | None) -> None:
        self.name = name
        self.template = template
        self.content, self.config = content, config
        """The text of tokenizer.json, and tokenizer_config.json without the chat template."""
        self._state = (name, content, json.dumps(config), template)
        self._content = without_side_effects(json.loads(content))
        self._backend = with_named_tokens(tokenizers.Tokenizer.from_str(json.dumps(self._content)), config)
        self.specials = {
            key: text
            for key, value in config.items()
            if key.endswith("_token") and (text := token_text(value)) is not None
        }
        self.bos_id, self.eos_id, self.pad_id = (self._id(f"{kind}_token") for kind in ("bos", "eos", "pad"))
        self.added: dict[int, AddedToken] = dict(self._backend.get_added_tokens_decoder())
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.prefix, self.suffix = self._around()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, self._state)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines token ids. It does not depend on file names or dates."""
        import xxhash

        facts = {"tokenizer": self._backend.to_str(), "specials": self.specials, "prefix": self.prefix}
        return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens in the text are recognized; none are added."""
        return list(_encoded(self._backend.encode_batch_fast, [text])[0].ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a plain prompt, as generation needs them: with the tokenizer's BOS, without EOS."""
        return self.prefix + self.encode(text)

    def encode_batch(self, texts: list[str], *, continues: bool = False) -> Iterable[np.ndarray]:
        """Token ids of many texts, int32 [T] each. continues: they continue another text: the tokenizer adds no leading space."""
        if self._word_cache is not None:
            return self._word_cache(texts)
        backend = self._continuation if continues else self._backend
        # One at a time, so that each stays in the CPU cache.
        return map(ids_of, _encoded(backend.encode_batch_fast, texts))

    def encode_with_positions(self, texts: list[str], *, continues: bool = False) -> list[Positions]:
        """Token ids of many texts and where the tokens are. continues: as in `encode_batch`."""
        backend = self._continuation if continues else self._backend
        if self._byte_lengths is None:
            return [Offsets(encoding) for encoding in _encoded(backend.encode_batch, texts)]
        ids = self.encode_batch(texts, continues=continues)
        found = [self._byte_lengths.positions(*pair) for pair in zip(texts, ids, strict=True)]
        others = [text for text, one in zip(texts, found, strict=True) if one is None]
        tracked = iter(_encoded(backend.encode_batch, others))
        return [Offsets(next(tracked)) if one is None else one for one in found]

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int], list[int | None]]:
        """Token ids of two texts with the special tokens of a pair, their token types, and the text of each (0 or 1; None for a
        special token)."""
        with _unicode((first, second)):
            encoding = self._backend.encode(first, second, add_special_tokens=True)
        return list(encoding.ids), list(encoding.type_ids), list(encoding.sequence_ids)

    @property
    def adds_space(self) -> bool:
        """Whether the tokenizer adds a space before a text, as SentencePiece does."""
        return self._continuation is not self._backend

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, with special tokens."""
        return str(self._backend.decode([int(token) for token in ids], skip_special_tokens=False))

    def token(self, index: int) -> str:
        """The vocabulary entry of a token id."""
        return str(self._backend.id_to_token(int(index)))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation with the chat template. TemplateError when there is no template or it raises an error."""
        import jinja2

        try:
            return render(
                self.require_template(),
                messages,
                tools,
                self.specials,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template rejects the conversation: {error}") from None

    def with_template(self, template: Template) -> Tokenizer:
        """A copy of this tokenizer with another chat template."""
        # `copy.copy` would go by `__reduce__`, whose cache gives the same object to every caller.
        other = object.__new__(Tokenizer)
        other.__dict__.update(self.__dict__)
        other.template, other._state = template, (*self._state[:3], template)
        return other

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """A copy that reads each of these texts as one token, with the next free ids in this order.

        They are ordinary tokens, not special ones: `decode` keeps them. ModelError if one is a token already, is part of
        another one, or has no ids.
        """
        if not tokens:
            return self
        for token in tokens:
            if self.knows(token):
                raise ModelError(
                    f"model.add_tokens: {token!r} is already a token of {self.name}",
                    hint="remove it from the list",
                )
            if not self.encode(token):
                raise ModelError(
                    f"model.add_tokens: the tokenizer of {self.name} ignores the text {token!r}",
                    hint="remove it from the list",
                )
        added = {**self.added}
        for token in tokens:
            added[max(self.vocab_size, *(number + 1 for number in added))] = AddedToken(
                token, normalized=False
            )
        content, config = with_added_tokens(self.content, self.config, added)
        other = Tokenizer(self.name, content, config, self.template)
        for number, token in enumerate(tokens, self.vocab_size):
            if other.encode(token) != [number]:
                raise ModelError(
                    f"model.add_tokens: the tokenizer of {self.name} does not read {token!r} as one token",
                    hint="remove it from the list: it may contain another token, or differ from it only by spaces",
                )
        return other

    def with_date(self, date: str) -> Tokenizer:
        """The same tokenizer, whose chat template writes this date where it asks for today's."""
        if self.template is None or not self.template.asks_date:
            return self
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise DataError(f"data.date: {date} is not a date", hint="write it as YYYY-MM-DD") from None
        return self.with_template(replace(self.template, date=date))

    def require_template(self) -> Template:
        """The chat template. TemplateError, with a hint how to choose one, when there is none."""
        if self.template is None:
            raise TemplateError(
                f"the tokenizer of {self.name} has no chat template",
                hint="set data.template (`tailor init --templates` lists the built-in templates)",
            )
        return self.template

    def knows(self, token: str) -> bool:
        """Whether a token is in the vocabulary."""
        return self._backend.token_to_id(token) is not None

    @cached_property
    def _continuation(self) -> tokenizers.Tokenizer:
        changed = without_leading_space(self._content)
        if changed == self._content:
            return self._backend
        return with_named_tokens(tokenizers.Tokenizer.from_str(json.dumps(changed)), self.config)

    @cached_property
    def _byte_lengths(self) -> ByteLengths | None:
        return byte_lengths(self._content, self._backend)

    @cached_property
    def _word_cache(self) -> WordCache | None:
        chosen = os.environ.get("RAYON_NUM_THREADS", "")
        threads = int(chosen) if re.fullmatch("0*[1-9][0-9]{,8}", chosen) else machine.cpus()
        if (
            threads > MAX_CACHE_THREADS
            or self._byte_lengths is None
            or not word_cache.is_possible(self._content, list(self.added.values()))
        ):
            return None
        return WordCache(partial(_encoded, self._backend.encode_batch_fast))

    def _id(self, key: str) -> int | None:
        return self._backend.token_to_id(self.specials[key]) if key in self.specials else None

    def _around(self) -> tuple[list[int], list[int]]:
        # The post-processor of tokenizer.json decides: transformers ignores `add_bos_token` when this file exists.
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        starts = [start for start in range(len(full)) if full[start : start + len(bare)] == bare]
        if not starts:
            return [], []
        return list(full[: starts[0]]), list(full[starts[0] + len(bare) :])


@lru_cache(maxsize=2)
def _rebuilt(name: str, content: str, config: str, template: Template | None) -> Tokenizer:
    # A worker unpickles the same tokenizer with every task, and building one takes up to a second.
    return Tokenizer(name, content, json.loads(config), template)


def load_tokenizer(path: str, revision: str | None = None, template: str | None = None) -> Tokenizer:
    """Load the tokenizer of a local folder, an fsspec URL or a Hub model. `template` replaces the model's own template.

    ModelError when there is no readable tokenizer, TemplateError when `template` cannot be loaded.
    """
    read = file_reader(path, revision)
    texts = {name: read(name) for name in FILES}
    config: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        config.update(parse(path, name, texts[name]))
    content = texts[TOKENIZER]
    if content is None:
        content = _converted(path, revision)
    main, tool_use = texts[CHAT_TEMPLATE], texts[_TOOL_USE]
    files = {"default": main, "tool_use": tool_use} if main and tool_use else main
    own = model_template(files or config.get("chat_template"))
    config = {key: value for key, value in config.items() if key != "chat_template"}
    chosen = load_template(template) if template else own
    try:
        return Tokenizer(path, content, config, chosen)
    except Exception as error:  # the package raises bare ones, and its settings may have any type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"the tokenizer of {path} cannot be read: {reason}",
            hint=f"copy its {TOKENIZER} and {TOKENIZER_CONFIG} again",
        ) from None


def model_tokenizer(model: Model, template: str | None = None) -> Tokenizer:
    """The tokenizer that a recipe's model is trained with: that of the base with `model.add_tokens`. See `load_tokenizer`."""
    return load_tokenizer(model.path, model.revision, template).with_tokens(model.add_tokens)


def _converted(path: str, revision: str | None) -> str:
    """tokenizer.json of a model that ships only SentencePiece or tiktoken files, converted by transformers."""
    from transformers import AutoTokenizer

    try:
        # Never the model's own code: its tokenizers are written in Python and have no fast form to convert.
        loaded = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        if len(set(loaded.get_vocab()) - set(loaded.all_special_tokens)) < 2:
            raise ValueError("its files have no vocabulary")  # without them, transformers makes an empty one
        return str(loaded.backend_tokenizer.to_str())
    except Exception as error:
        # The cause may be a missing package, missing files or a slow (Python) tokenizer: the hint covers all three.
        raise ModelError(
            f"model.path: {path} has no tokenizer.json, and transformers cannot convert its tokenizer "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            hint="save the model's fast tokenizer into the folder, or install sentencepiece or tiktoken if the model needs them",
        ) from None
