"""llama.cpp, as the package cyllama has it: reads GGUF files, computes with them, and quantizes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.printable import printable

_ERROR = 4
"""GGML_LOG_LEVEL_ERROR"""
_FLOAT32 = 0
"""GGML_TYPE_F32"""


def require() -> None:
    """ModelError when the package is not installed."""
    if find_spec("cyllama") is None:
        raise ModelError(
            "GGUF files need the package cyllama, which has llama.cpp", hint="pip install 'tailor[gguf]'"
        )


@contextmanager
def _library() -> Iterator[tuple[Any, list[str]]]:
    """The library, and its error messages. Its log is not printed."""
    from cyllama.llama import llama_cpp

    errors: list[str] = []

    def log(level: int, text: str) -> None:
        if level == _ERROR and text.strip():
            errors.append(printable(text.strip())[:200])

    os.environ.setdefault(
        "GGML_NO_BACKTRACE", "1"
    )  # else it has a debugger print its own stack when it ends the process
    llama_cpp.set_log_callback(log)
    try:
        yield llama_cpp, errors
    finally:
        llama_cpp.disable_logging()


def quantize(source: Path, to: Path, ftype: int) -> None:
    """Write the GGUF file `source` to the file `to` with weights of the type `ftype`. ModelError when llama.cpp refuses."""
    with _library() as (library, errors):
        settings = library.LlamaModelQuantizeParams()
        settings.ftype, settings.nthread = ftype, torch.get_num_threads()
        try:
            library.model_quantize(str(source), str(to), settings)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"llama.cpp cannot quantize the file: {errors[0] if errors else error}",
                hint="choose another --type",
            ) from error


class GgufModel:
    """An open GGUF file. Made by `opened`."""

    def __init__(self, library: Any, model: Any) -> None:
        self._library, self._model = library, model
        self._vocab = model.get_vocab()
        self.vocab_size = int(self._vocab.n_vocab)
        self.adds_bos = bool(self._vocab.get_add_bos())
        """Whether llama.cpp puts the BOS before every prompt."""
        self.chat_template: str | None = model.get_default_chat_template() or None
        """The Jinja template in the file."""
        self.stop_ids = frozenset(token for token in range(self.vocab_size) if self._vocab.is_eog(token))
        """The tokens at which llama.cpp ends an answer: EOS, end of turn, and those that it knows by their text."""
        self.ordinary_stops = [
            token
            for token in self.stop_ids
            if token == self._vocab.token_eos() or not self._vocab.is_control(token)
        ]
        """Those of them that the file's metadata names as EOS, or that are no special tokens."""

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Token ids of a text, in which special tokens are recognized. start: with the BOS, if the file asks for it."""
        return [int(token) for token in self._vocab.tokenize(text, start, True)]

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits after each token of a row, float32 [T, V]."""
        stream = self._stream(len(ids))
        return torch.stack([stream.read(token) for token in ids])

    def far_logits(self, before: Sequence[int], after: Sequence[int], distance: int) -> torch.Tensor:
        """The logits after each token of `after`, float32 [T, V]. The tokens before it, but the last, are moved `distance` away."""
        stream = self._stream(len(before) + len(after), start=distance)
        for token in before:
            stream.read(token)
        stream.move(distance, distance + len(before) - 1, by=-distance)
        return torch.stack([stream.read(token) for token in after])

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], int | None]:
        """The greedy answer without its stop token, and that token; None if the answer has `max_new_tokens` tokens."""
        stream, found = self._stream(len(prompt) + max_new_tokens), list[int]()
        for token in prompt:
            logits = stream.read(token)
        for _ in range(max_new_tokens):
            token = int(logits.argmax())
            if token in self.stop_ids:
                return found, token
            found.append(token)
            logits = stream.read(token)
        return found, None

    def _stream(self, length: int, start: int = 0) -> _Stream:
        return _Stream(self._library, self._model, length, start)


class _Stream:
    """Reads the tokens of a text of at most `length` one by one, as while an answer is generated. start: the first position.

    Keys and values are kept in float32.
    """

    def __init__(self, library: Any, model: Any, length: int, start: int) -> None:
        settings = library.LlamaContextParams()
        settings.n_ctx = length
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = _FLOAT32
        settings.flash_attn_type = 0
        self._context = library.LlamaContext(model, settings)
        self._batch = library.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
        self._position = start

    def read(self, token: int) -> torch.Tensor:
        """The logits after the next token, float32 [V]."""
        self._batch.clear()
        self._batch.add(int(token), self._position, [0], True)
        self._context.decode(self._batch)
        self._position += 1
        return torch.tensor(self._context.get_logits(), dtype=torch.float32)

    def move(self, start: int, end: int, by: int) -> None:
        """Move the tokens that were read at the positions from `start` to before `end`."""
        self._context.memory_seq_add(0, start, end, by)


def _model_class(library: Any) -> Any:
    """cyllama's class of a model, with the attribute that its `get_logits` reads: cyllama 0.2 has it at the vocabulary only."""

    class Model(library.LlamaModel):  # type: ignore[misc]
        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    return Model


@contextmanager
def opened(file: Path) -> Iterator[GgufModel]:
    """Open a GGUF file. ModelError when llama.cpp cannot read it, or compute with it."""
    with _library() as (library, errors):
        try:
            settings = library.LlamaModelParams()
            settings.check_tensors, settings.n_gpu_layers = True, 0
            yield GgufModel(library, _model_class(library)(str(file), settings))
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            raise ModelError(
                f"llama.cpp cannot read the file: {errors[0] if errors else error}",
                hint="see whether llama.cpp supports the model and its tokenizer; a SentencePiece tokenizer may need the original's "
                "tokenizer.model in the folder of the model or the base",
            ) from error
