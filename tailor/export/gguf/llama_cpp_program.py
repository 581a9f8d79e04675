"""A program around llama.cpp: it reads requests from stdin, and writes their results to stdout. It imports nothing of tailor.

llama.cpp ends its process when a file contradicts itself (GGML_ASSERT), so it runs in one of its own.

A request is a line of JSON, `[FUNCTION, [ARGUMENT, …]]`. So is a result: `{"value": VALUE}`, `{"floats": N}` followed by N
numbers in float32, or `{"error": TEXT}`.
"""

from __future__ import annotations

import array
import json
import os
import sys
from typing import Any

ERROR = 4
"""GGML_LOG_LEVEL_ERROR"""
FLOAT32 = 0
"""GGML_TYPE_F32"""


class Functions:
    """What can be called. An instance has one open file at most."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._model: Any = None
        self._threads = 1

    def quantize(self, source: str, to: str, ftype: int, threads: int) -> None:
        """Write the file `source` to the file `to` with weights of the type `ftype`."""
        settings = self._library.LlamaModelQuantizeParams()
        settings.ftype, settings.nthread = ftype, threads
        self._library.model_quantize(source, to, settings)

    def open(self, file: str, threads: int) -> dict[str, Any]:
        """Open a file for the functions below. Returns the values of `llama_cpp.GgufModel`."""
        settings = self._library.LlamaModelParams()
        settings.check_tensors, settings.n_gpu_layers = True, 0
        self._model, self._threads = _model_class(self._library)(file, settings), threads
        vocab = self._model.get_vocab()
        stops = [token for token in range(vocab.n_vocab) if vocab.is_eog(token)]
        return {
            "adds_bos": bool(vocab.get_add_bos()),
            "chat_template": self._model.get_default_chat_template() or None,
            "stop_ids": stops,
            "ordinary_stops": [
                token for token in stops if token == vocab.token_eos() or not vocab.is_control(token)
            ],
        }

    def encode(self, text: str, start: bool) -> list[int]:
        """The token ids of a text."""
        return [int(token) for token in self._model.get_vocab().tokenize(text, start, True)]

    def logits(self, ids: list[int]) -> array.array[float]:
        """The logits after each token of a row."""
        stream, found = self._stream(len(ids)), array.array("f")
        for token in ids:
            found += stream.read(token)
        return found

    def far_logits(self, before: list[int], after: list[int], distance: int) -> array.array[float]:
        """The logits after each token of `after`. The tokens before it, but the last, are moved `distance` away."""
        stream, found = self._stream(len(before) + len(after), start=distance), array.array("f")
        for token in before:
            stream.read(token)
        stream.move(distance, distance + len(before) - 1, by=-distance)
        for token in after:
            found += stream.read(token)
        return found

    def answer(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], int | None]:
        """The greedy answer without its stop token, and that token; None if the answer has `max_new_tokens` tokens."""
        stream, found = self._stream(len(prompt) + max_new_tokens), list[int]()
        vocab = self._model.get_vocab()
        for token in prompt:
            logits = stream.read(token)
        for _ in range(max_new_tokens):
            token = logits.index(max(logits))
            if vocab.is_eog(token):
                return found, token
            found.append(token)
            logits = stream.read(token)
        return found, None

    def _stream(self, length: int, start: int = 0) -> _Stream:
        return _Stream(self._library, self._model, length, start, self._threads)


class _Stream:
    """Reads the tokens of a text of at most `length` one by one, as while an answer is generated. start: the first position.

    Keys and values are kept in float32.
    """

    def __init__(self, library: Any, model: Any, length: int, start: int, threads: int) -> None:
        settings = library.LlamaContextParams()
        settings.n_ctx = length
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = FLOAT32
        settings.flash_attn_type = 0
        self._context = library.LlamaContext(model, settings)
        self._batch = library.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
        self._position = start

    def read(self, token: int) -> array.array[float]:
        """The logits after the next token, float32 [V]."""
        self._batch.clear()
        self._batch.add(token, self._position, [0], True)
        self._context.decode(self._batch)
        self._position += 1
        return array.array("f", self._context.get_logits())

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


def main() -> None:
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no result
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else a debugger prints the stack of a process that llama.cpp ends
    from cyllama.llama import llama_cpp

    errors: list[str] = []

    def log(level: int, text: str) -> None:
        if level == ERROR and text.strip():
            errors.append(text.strip())

    llama_cpp.set_log_callback(log)
    functions = Functions(llama_cpp)
    for line in sys.stdin.buffer:
        name, arguments = json.loads(line)
        errors.clear()
        content = b""
        try:
            value = getattr(functions, name)(*arguments)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            result = {"error": errors[0] if errors else str(error)}
        else:
            if isinstance(value, array.array):
                content, result = value.tobytes(), {"floats": len(value)}
            else:
                result = {"value": value}
        results.write(json.dumps(result).encode() + b"\n" + content)
        results.flush()


if __name__ == "__main__":
    main()
