"""Tokenizer files of a trained artifact: the base model's tokenizer, the chat template of the data, and the stop tokens.

`AutoTokenizer` of plain transformers must give the same token ids as training did; `fix_tokenizer_class` checks this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.encode.gguf import readable
from tailor.encode.template import Template
from tailor.encode.tokenizer import FILES, Tokenizer, load_tokenizer, model_tokenizer
from tailor.errors import ModelError
from tailor.layout import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from tailor.spec.model import Model
from tailor.store import OBJECT

PLAIN = "PreTrainedTokenizerFast"
"""This class uses tokenizer.json as it is. The classes of model families rebuild parts of it."""
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
"""Texts that tokenizers often split differently: digits, whitespace, contractions, scripts, code."""
MARKED = 256
"""How many of a tokenizer's added tokens are compared too, each between two words."""


@dataclass(frozen=True)
class Original:
    """The tokenizer of a base model as training reads it, with the settings that only its transformers class knows."""

    tokenizer: Tokenizer
    settings: Mapping[str, Any]
    """The content of tokenizer_config.json."""

    @classmethod
    def open(cls, model: Model, *, trust_remote_code: bool) -> Original:
        """Load the base model's tokenizer. ModelError when transformers cannot open it, as the artifact would be unusable.

        trust_remote_code: `own_code.granted` of the model.
        """
        from transformers import AutoTokenizer

        tokenizer = model_tokenizer(model)
        try:
            known = AutoTokenizer.from_pretrained(
                readable(model.path), revision=model.revision, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # a missing package, an unknown class, files of another kind
            raise ModelError(
                f"model.path {model.path}: transformers cannot open its tokenizer "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
                hint="if you trust the model's own code, set model.trust_remote_code: true"
                if "trust_remote_code" in str(error)
                else "install the package it needs, or set tokenizer_class: PreTrainedTokenizerFast in its tokenizer_config.json",
            ) from error
        # The order is kept: it decides the ids of tokens that tokenizer.json lacks.
        settings = dict(tokenizer.config)
        settings.setdefault("tokenizer_class", type(known).__name__)
        # Some tokenizer classes define special tokens that are in no file.
        for role, token in known.special_tokens_map.items():
            if isinstance(token, str) and tokenizer.knows(token):
                settings.setdefault(role, token)
        settings.pop("auto_map", None)  # refers to Python files that are not copied
        return cls(Tokenizer(tokenizer.name, tokenizer.content, settings, tokenizer.template), settings)

    def write(self, folder: Path, template: Mapping[str, Any] | None) -> None:
        """Write the tokenizer, the chat template and the stop tokens. template: `TokenStore.template`, None for the base's own."""
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
    """Names of all tokenizer files when `folder` has a tokenizer, else none.

    Also names of files that `folder` lacks: a copy must not mix its files with those of another tokenizer.
    """
    return FILES if all((folder / name).is_file() for name in FILES[:2]) else ()


def fix_tokenizer_class(folder: Path, texts: Iterable[str] = ()) -> str | None:
    """Make `AutoTokenizer` give the same token ids as training, if necessary by setting `tokenizer_class`.

    Call it when the folder is complete, as config.json influences the class too. texts: compared in addition to `PROBES`.
    Returns a warning for the user when `AutoTokenizer` still gives other ids, else None.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    own = load_tokenizer(str(folder))
    marked = [f"a {own.added[token].content} b" for token in sorted(own.added)[:MARKED]]
    probes = [*PROBES, *marked, *texts]
    if _difference(folder, own, probes) is None:
        return None
    path = folder / TOKENIZER_CONFIG
    settings = OBJECT.read_path(path) if path.is_file() else {}
    _write_settings(folder, {**settings, "tokenizer_class": PLAIN})
    difference = _difference(folder, own, probes)
    if difference is None:
        return None
    return (
        f"AutoTokenizer of transformers does not give the token ids of training ({difference}): outside of tailor, "
        f"load the tokenizer with {PLAIN}.from_pretrained"
    )


def _difference(folder: Path, own: Tokenizer, texts: Sequence[str]) -> str | None:
    """How `AutoTokenizer` differs from `own`; None when it gives the same ids."""
    from transformers import AutoTokenizer

    try:
        plain = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        for text in texts:
            if plain(text, add_special_tokens=False)["input_ids"] != own.encode(text):
                return f"other ids for {text!r}"
    except Exception as error:  # any error means that transformers cannot read it
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
