"""The special tokens around the two texts of a pair, by the tokenizer's own template for pairs.

Of BERT this is `[CLS] query [SEP] passage [SEP]`, of Llama 3 `<bos> query <bos> passage`. Many tokenizers of decoders put nothing
between the texts, so that a model could not see where the passage begins. They get the template `query <eos> passage <eos>`, which
`declare` writes into the saved tokenizer.json, so that other programs give a pair the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tailor.encode.masks import Span
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import ModelError
from tailor.layout import TOKENIZER

_REPLACED = ("TemplateProcessing",)
"""Post-processors that put special tokens around a text. The others, such as ByteLevel, change only offsets."""


@dataclass(frozen=True)
class PairTemplate:
    """The token ids around the two texts of a pair, and whether the second text has token type 1."""

    before: list[int]
    between: list[int]
    after: list[int]
    typed: bool
    is_own: bool = True
    """Whether it is the tokenizer's own."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairTemplate:
        """Read it from the tokenizer. ModelError when it has neither a separator nor an EOS, or another use of token types."""
        ids, types, owners = tokenizer.encode_pair("a", "b")
        first = [at for at, owner in enumerate(owners) if owner == 0]
        second = [at for at, owner in enumerate(owners) if owner == 1]
        if not first or not second or second[0] - first[-1] < 2:
            return cls._with_eos(tokenizer)
        stop, start = first[-1] + 1, second[0]
        if (typed := types[start] == 1) and 1 in types[:start]:
            # The first token of type 1 is the separator: a template of decoders (Llama, Gemma), which have no token types.
            typed, types = False, types[:stop] + [0] * (len(ids) - stop)
        names = tokenizer.config.get("model_input_names")
        if isinstance(names, list) and "token_type_ids" not in names:
            typed, types = False, [0] * len(types)
        if types != [0] * start + [int(typed)] * (len(ids) - start):
            raise ModelError(
                f"the tokenizer of {tokenizer.name} gives the tokens of a pair the types {types}",
                hint="use an encoder whose second text has type 1, such as BERT, or no token types",
            )
        return cls(ids[: first[0]], ids[stop:start], ids[second[-1] + 1 :], typed)

    @classmethod
    def _with_eos(cls, tokenizer: Tokenizer) -> PairTemplate:
        if (eos := tokenizer.eos_id) is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name} puts no token between the two texts of a pair, and has no EOS",
                hint="use a model whose tokenizer.json has a template for pairs, such as BERT's, or one with an eos_token",
            )
        # A last token that is also the padding would be taken for padding: transformers scores the last token that is none.
        after = [] if padding_id(tokenizer) == eos else [eos]
        return cls(tokenizer.prefix, [eos], after, False, is_own=False)

    def pair(self, query: Sequence[int], passage: Sequence[int]) -> tuple[np.ndarray, list[Span]]:
        """Token ids int32[T] and spans of a pair."""
        head = [*self.before, *query, *self.between]
        start, stop = len(head), len(head) + len(passage)
        ids = np.array([*head, *passage, *self.after], np.int32)
        return ids, [(start, stop), (stop, len(ids))] if self.typed else [(start, stop)]


def padding_id(tokenizer: Tokenizer) -> int:
    """The token that pads pairs of a decoder: the tokenizer's padding token, or its EOS. ModelError when it has neither."""
    found = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    if found is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name} has neither a padding token nor an EOS",
            hint="set pad_token in its tokenizer_config.json",
        )
    return found


def declare(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the template into the tokenizer.json in `folder` if it is not the tokenizer's own."""
    template = PairTemplate.of(tokenizer)
    if template.is_own:
        return
    content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    kept = [part for part in _parts(content.get("post_processor")) if part["type"] not in _REPLACED]
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [*kept, _template_processing(tokenizer, template)],
    }
    (folder / TOKENIZER).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _template_processing(tokenizer: Tokenizer, template: PairTemplate) -> dict[str, Any]:
    """The post-processor of the package `tokenizers`. A single text keeps the tokens that it has."""

    def texts(*parts: list[int] | str) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, str):
                pieces.append({"Sequence": {"id": part, "type_id": 0}})
            else:
                pieces += [{"SpecialToken": {"id": tokenizer.token(one), "type_id": 0}} for one in part]
        return pieces

    used = {*tokenizer.prefix, *tokenizer.suffix, *template.before, *template.between, *template.after}
    named = {one: tokenizer.token(one) for one in sorted(used)}
    return {
        "type": "TemplateProcessing",
        "single": texts(tokenizer.prefix, "A", tokenizer.suffix),
        "pair": texts(template.before, "A", template.between, "B", template.after),
        "special_tokens": {name: {"id": name, "ids": [one], "tokens": [name]} for one, name in named.items()},
    }


def _parts(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [part for one in processor["processors"] for part in _parts(one)]
    return [processor]
