"""The tokenizer beside what was trained: the base's own file, the data's template, and ids that plain transformers gives too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.encode.template import Template
from tailor.encode.tokenizer import FILES, Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.layout import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from tailor.spec.model import Model

PLAIN = "PreTrainedTokenizerFast"
"""The class that takes tokenizer.json as it stands. Others rebuild parts of it as their family has them."""
PROBES = (
    "1234 and 12,345.67 in 2024",
    "WE'LL see, they've gone; it's HERE",
    "  two  spaces\n\n\n    and\tlines \r\n",
    "def f(x):\n    return {'a': [x**2, -1]}  # code",
    "日本の海は広い。你好,世界! 한국어",
    "Straße, déjà vu, naïve ﬁne Ａ",
    "привет мир शांति سلام",
    "🙂👩‍💻 → ∑",
    "https://example.org/a_b?c=1&d=%20",
    "<|user|></s><s>[INST] {{x}}",
)
"""Texts that tokenizers cut in ways of their own: digits, blanks, contractions, scripts, code."""
MARKED = 256
"""So many of a tokenizer's added tokens are probed too, each between words."""


@dataclass(frozen=True)
class Original:
    """A base's tokenizer as training reads it, and what transformers knows of it beside its files."""

    tokenizer: Tokenizer
    settings: Mapping[str, Any]
    """For tokenizer_config.json."""

    @classmethod
    def open(cls, model: Model) -> Original:
        """ModelError when transformers cannot open it: then it could not be saved either."""
        from transformers import AutoTokenizer

        tokenizer = load_tokenizer(model.path, model.revision)
        try:
            known = AutoTokenizer.from_pretrained(
                model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        except (
            Exception
        ) as error:  # a package that is missing, a class that nobody knows, files of another kind
            raise ModelError(
                f"model.path {model.path}: transformers cannot open its tokenizer "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
                hint="if it has code of its own that you trust, set model.trust_remote_code: true"
                if "trust_remote_code" in str(error)
                else "install what it needs, or set tokenizer_class: PreTrainedTokenizerFast in its tokenizer_config.json",
            ) from error
        settings = dict(
            tokenizer.config
        )  # in its order, which decides on the ids of tokens that the file lacks
        settings.setdefault("tokenizer_class", type(known).__name__)
        # Some classes have special tokens that no file names.
        for role, token in known.special_tokens_map.items():
            if isinstance(token, str) and tokenizer.knows(token):
                settings.setdefault(role, token)
        settings.pop("auto_map", None)  # code that does not lie here
        return cls(Tokenizer(tokenizer.name, tokenizer.content, settings, tokenizer.template), settings)

    def write(self, folder: Path, template: Mapping[str, Any] | None) -> None:
        """Write tokenizer, template and stop tokens. template: a token store's; None for the base's own template."""
        from transformers import GenerationConfig

        own, ends = self.tokenizer.template, []
        if template is not None:
            own = Template(template["name"], template["text"], template.get("tool_use"))
            ends = list(template["end_of_turn_ids"])
        settings = dict(self.settings)
        if own is not None and own.tool_use is not None:
            named = {"default": own.text, "tool_use": own.tool_use}
            settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        elif own is not None:
            (folder / CHAT_TEMPLATE).write_text(own.text, encoding="utf-8", newline="")
        (folder / TOKENIZER).write_bytes(self.tokenizer.content.encode())
        _write_settings(folder, settings)
        eos = self.tokenizer.eos_id
        stops = ([] if eos is None else [eos]) + [token for token in ends if token != eos]
        GenerationConfig(
            bos_token_id=self.tokenizer.bos_id,
            eos_token_id=stops or None,
            pad_token_id=self.tokenizer.pad_id if self.tokenizer.pad_id is not None else eos,
        ).save_pretrained(folder)


def own_files(folder: Path) -> tuple[str, ...]:
    """The files that belong to the tokenizer of `folder`, there or not: none of another tokenizer may lie among them."""
    return FILES if all((folder / name).is_file() for name in FILES[:2]) else ()


def settle(folder: Path, texts: Iterable[str] = ()) -> str | None:
    """Let plain transformers cut texts as training does, if need be by the class that it opens the tokenizer with.

    Call it when the folder is whole: config.json decides on the class too. texts: to compare beside the probes. Returns
    what to tell the user where transformers cuts them otherwise even so.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    own = load_tokenizer(str(folder))
    marked = [f"a {own.added[at].content} b" for at in sorted(own.added)[:MARKED]]
    probes = [*PROBES, *marked, *texts]
    if _cut_otherwise(folder, own, probes) is None:
        return None
    path = folder / TOKENIZER_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    _write_settings(folder, {**settings, "tokenizer_class": PLAIN})
    wrong = _cut_otherwise(folder, own, probes)
    if wrong is None:
        return None
    return (
        f"AutoTokenizer of transformers does not read the tokenizer as training did ({wrong}): outside of tailor, open "
        f"it with {PLAIN}.from_pretrained"
    )


def _cut_otherwise(folder: Path, own: Tokenizer, texts: Sequence[str]) -> str | None:
    """What plain transformers does otherwise than `own`; None when it gives the same ids."""
    from transformers import AutoTokenizer

    try:
        plain = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        for text in texts:
            if plain(text, add_special_tokens=False)["input_ids"] != own.encode(text):
                return f"other ids for {text!r}"
    except Exception as error:  # whatever it is, transformers does not read it
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
