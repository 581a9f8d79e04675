"""Compares what a GGUF file, opened by llama.cpp, says of tokens with the tokenizer of the model: ids, template and stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailor.artifacts.verify import TEXTS
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.tokenizer_files import PROBES
from tailor.errors import ModelError
from tailor.export import probes
from tailor.export.gguf.llama_cpp import GgufModel

SLOTS = ("eot", "eom")
"""Metadata of a GGUF file in which stop tokens other than the EOS are named."""


def refused(
    reason: str, hint: str = "export as huggingface, and report the difference to llama.cpp"
) -> ModelError:
    """The error for a file that differs from its model."""
    return ModelError(f"the GGUF file is not the model: {reason}", hint=hint)


def compare(gguf: GgufModel, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> int:
    """Compare the chat template, and the token ids of texts and conversations. ModelError when they differ, or when llama.cpp
    ends an answer at a token that does not end one of the model.

    Returns the number of compared texts.
    """
    own = tokenizer.template.text if tokenizer.template is not None else None
    if gguf.chat_template != own:
        raise refused(
            "it has another chat template" if own is not None else "it has a chat template, and the run none"
        )
    extra = [tokenizer.token(token) for token in gguf.ordinary_stops if token not in stop_ids]
    if extra and stop_ids:
        raise refused(f"llama.cpp stops at {' '.join(extra)}, at which the model does not")
    texts = [*PROBES, *TEXTS]
    for text in texts:
        _compare_ids(text, gguf.encode(text, start=False), tokenizer.encode(text))
    if tokenizer.template is None:
        for text in TEXTS:
            _compare_ids(text, gguf.encode(text, start=True), tokenizer.encode_prompt(text))
        return len(texts)
    bos = tokenizer.specials.get("bos_token", "")
    prompts = list(_prompts(tokenizer))
    for prompt in prompts:
        # llama.cpp drops the template's BOS when it adds one itself.
        given = prompt.removeprefix(bos) if gguf.adds_bos else prompt
        _compare_ids(prompt, gguf.encode(given, start=True), tokenizer.encode(prompt))
    return len(texts) + len(prompts)


def _compare_ids(text: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise refused(
            f"llama.cpp encodes {text[:60]!r} to {len(found)} tokens, {found[:12]}…, the tokenizer of the run to "
            f"{len(expected)}, {expected[:12]}…"
        )


def _prompts(tokenizer: Tokenizer) -> Iterator[str]:
    """The rendered probes that the chat template does not reject."""
    for probe in (*probes.TURNS, *probes.SYSTEM, *probes.EMPTY_SYSTEM, *probes.SPACES, *probes.TOOLS):
        if (text := probes.rendered(tokenizer, probe)) is not None:
            yield text


def require_stops(gguf: GgufModel, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
    """ModelError when llama.cpp does not end an answer at one of the model's stop tokens."""
    if missing := [tokenizer.token(token) for token in unknown_stops(gguf, stop_ids)]:
        raise refused(f"llama.cpp does not stop at {' '.join(missing)}, which ends an answer of the model")


def unknown_stops(gguf: GgufModel, stop_ids: Sequence[int]) -> list[int]:
    """The stop tokens that llama.cpp knows neither from the file nor by their text. ModelError for more than a file can name."""
    missing = [token for token in stop_ids if token not in gguf.stop_ids]
    if len(missing) > len(SLOTS):
        raise ModelError(
            f"llama.cpp does not know {len(missing)} of the model's {len(stop_ids)} stop tokens, and a GGUF file can name only {len(SLOTS)}",
            hint="remove some from eos_token_id in the run's generation_config.json",
        )
    return missing
