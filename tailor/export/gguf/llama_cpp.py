"""llama.cpp, as the package cyllama has it: reads GGUF files, computes with them, and quantizes them.

It runs in a process of its own (`llama_cpp_program`): an assertion of llama.cpp ends that process, and is an error here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.export.gguf import programs
from tailor.export.gguf.converter import no_space
from tailor.printable import printable
from tailor.store.failures import reports_full
from tailor.store.scratch import scratch

_PROGRAM = Path(__file__).with_name("llama_cpp_program.py")
_UNSUPPORTED = (
    "see whether llama.cpp supports the model and its tokenizer; a SentencePiece tokenizer may need the original's "
    "tokenizer.model in the folder of the model or the base"
)


def require() -> None:
    """ModelError when the package is not installed."""
    if find_spec("cyllama") is None:
        raise ModelError(
            "GGUF files need the package cyllama, which has llama.cpp", hint="pip install 'tailor[gguf]'"
        )


def quantize(source: Path, to: Path, ftype: int) -> None:
    """Write the GGUF file `source` to the file `to` with weights of the type `ftype`. ModelError when llama.cpp refuses."""
    with _running("quantize the file", "choose another --type") as llama:
        try:
            llama.call("quantize", str(source.absolute()), str(to.absolute()), ftype, torch.get_num_threads())
        except ModelError as error:
            if reports_full(error.message):
                raise no_space(to) from None
            raise


@contextmanager
def opened(file: Path) -> Iterator[GgufModel]:
    """Open a GGUF file. ModelError when llama.cpp cannot read it, here or later when it computes with it."""
    with _running("read the file", _UNSUPPORTED) as llama:
        yield GgufModel(llama, **llama.call("open", str(file.absolute()), torch.get_num_threads()))


class GgufModel:
    """An open GGUF file. Made by `opened`."""

    def __init__(
        self,
        llama: _LlamaCpp,
        adds_bos: bool,
        chat_template: str | None,
        stop_ids: Sequence[int],
        ordinary_stops: list[int],
    ) -> None:
        self._llama = llama
        self.adds_bos = adds_bos
        """Whether llama.cpp puts the BOS before every prompt."""
        self.chat_template = chat_template
        """The Jinja template in the file."""
        self.stop_ids = frozenset(stop_ids)
        """The tokens at which llama.cpp ends an answer: EOS, end of turn, and those that it knows by their text."""
        self.ordinary_stops = ordinary_stops
        """Those of them that the file's metadata names as EOS, or that are no special tokens."""

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Token ids of a text, in which special tokens are recognized. start: with the BOS, if the file asks for it."""
        found: list[int] = self._llama.call("encode", text, start)
        return found

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits after each token of a row, float32 [T, V]."""
        return self._llama.numbers("logits", list(ids)).view(len(ids), -1)

    def far_logits(self, before: Sequence[int], after: Sequence[int], distance: int) -> torch.Tensor:
        """The logits after each token of `after`, float32 [T, V]. The tokens before it, but the last, are moved `distance` away."""
        return self._llama.numbers("far_logits", list(before), list(after), distance).view(len(after), -1)

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], int | None]:
        """The greedy answer without its stop token, and that token; None if the answer has `max_new_tokens` tokens."""
        ids, stop = self._llama.call("answer", list(prompt), max_new_tokens)
        return ids, stop


class _LlamaCpp:
    """The running program. Its functions raise ModelError when llama.cpp refuses, and when it ends its process.

    done: what it cannot do then, for the message. log: the file with the program's messages.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, done: str, hint: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._log, self._done, self._hint = process, log, done, hint
        self._requests, self._results = process.stdin, process.stdout

    def call(self, function: str, *arguments: Any) -> Any:
        """The value of a function of `llama_cpp_program.Functions`."""
        return self._result(function, arguments)["value"]

    def numbers(self, function: str, *arguments: Any) -> torch.Tensor:
        """The numbers of a function, float32 [N]."""
        count = self._result(function, arguments)["floats"]
        content = self._results.read(4 * count)
        if len(content) < 4 * count:
            raise self._ended()
        return torch.frombuffer(bytearray(content), dtype=torch.float32)

    def _result(self, function: str, arguments: Sequence[Any]) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps([function, arguments]).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._ended() from None
        line = self._results.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise self._refused(result["error"])
        return result

    def _ended(self) -> ModelError:
        status = self._process.wait()
        return self._refused(programs.ending(status, self._log.read_text(errors="replace")))

    def _refused(self, reason: str) -> ModelError:
        return ModelError(f"llama.cpp cannot {self._done}: {printable(reason)[:300]}", hint=self._hint)


@contextmanager
def _running(done: str, hint: str) -> Iterator[_LlamaCpp]:
    """llama.cpp in a new process, which ends with the context. done, hint: of its errors."""
    with scratch() as folder:
        log = folder / "log"
        with programs.running(programs.of_file(_PROGRAM), folder, log) as process:
            yield _LlamaCpp(process, log, done, hint)
