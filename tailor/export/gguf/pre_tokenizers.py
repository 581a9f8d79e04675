"""Pre-tokenizers of llama.cpp, by the pattern with which a byte-level tokenizer splits texts.

llama.cpp's converter knows the tokenizers of published models, by a hash of their token ids. Any other one that splits texts
with a pattern of llama.cpp (`src/llama-vocab.cpp`: `regex_exprs`) is read with the same name. The file is compared with the
tokenizer afterwards like all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailor.layout import TOKENIZER
from tailor.store import OBJECT

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN_2 = rf"{_WORDS}|\p{{N}}|{_REST}"
GPT_2, DIGITS = "ByteLevel", "Digits, ByteLevel"
"""The pattern of GPT-2, which the class ByteLevel has, alone and after every digit is split off."""
NAMES = {
    (GPT_2, False): "gpt-2",
    (DIGITS, False): "smollm",
    (QWEN_2, False): "qwen2",
    (LLAMA_3, False): "smaug-bpe",
    (LLAMA_3, True): "llama-bpe",
}
"""(pattern, whether whole words of the vocabulary are taken without merges) -> name of `tokenizer.ggml.pre`."""


def is_sentencepiece(folder: Path) -> bool:
    """Whether the tokenizer in `folder` was one of SentencePiece, which has tokens for bytes that it does not know."""
    return bool((_content(folder).get("model") or {}).get("byte_fallback"))


def find_pre_tokenizer(folder: Path) -> str:
    """The name of llama.cpp's pre-tokenizer that splits texts as the tokenizer in `folder` does; empty if none is known to."""
    content = _content(folder)
    model = content.get("model") or {}
    if model.get("type") != "BPE" or is_sentencepiece(folder) or content.get("normalizer") is not None:
        return ""
    return NAMES.get((_pattern(content.get("pre_tokenizer")), bool(model.get("ignore_merges"))), "")


def _content(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER
    return OBJECT.read_path(path) if path.is_file() else {}


def _pattern(pre_tokenizer: Any) -> str:
    """How texts are split; empty if not in one of the known ways."""
    parts = list(pre_tokenizer.get("pretokenizers") or [pre_tokenizer]) if pre_tokenizer else []
    bytes_of = parts.pop() if parts and parts[-1].get("type") == "ByteLevel" else None
    if bytes_of is None or bytes_of.get("add_prefix_space") or len(parts) > 1:
        return ""
    whole = bytes_of.get("use_regex", True)
    if not parts:
        return GPT_2 if whole else ""
    (part,) = parts
    if part.get("type") == "Digits":
        return DIGITS if whole and part.get("individual_digits") else ""
    if part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return "" if whole else str(part.get("pattern", {}).get("Regex", ""))
    return ""
