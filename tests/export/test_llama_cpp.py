"""llama.cpp in a process of its own: what it refuses, and where it ends its process, is an error of the command."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.export.gguf import llama_cpp, programs
from tailor.export.gguf.llama_cpp import GgufModel
from tests.helpers.gguf_files import file_of_zeros, gguf_llama

pytest.importorskip("cyllama")
pytest.importorskip("gguf")

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def sentencepiece(*tokens: str) -> Callable[[Any], int]:
    """A tokenizer of these tokens after the special ones."""

    def add_tokens(writer: Any) -> int:
        names = ["<unk>", "<s>", "</s>", *tokens]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(names)
        writer.add_add_space_prefix(False)
        writer.add_token_scores([0.0] * len(names))
        writer.add_token_types([2, 3, 3, *(6 if name in BYTES else 1 for name in tokens)])
        return len(names)

    return add_tokens


ABORTS: dict[str, tuple[Callable[[Any], int], int, Callable[[GgufModel], Any], str]] = {
    "when the file is opened": (
        *(sentencepiece("same", "same", *BYTES), 1, lambda _: None),
        "GGML_ASSERT(id_to_token.size() == token_to_id.size()) failed (SIGABRT)",
    ),
    "when a text is encoded": (
        *(sentencepiece("x"), 1, lambda model: model.encode("é", start=False)),
        "what():  _Map_base::at (SIGABRT)",
    ),
    "when logits are computed": (
        *(sentencepiece(*BYTES), 32, lambda model: model.logits([5, 6])),
        "GGML_ASSERT(ggml_can_mul_mat(a, b)) failed (SIGABRT)",
    ),
}


@pytest.mark.parametrize("case", ABORTS)
def test_where_llama_cpp_ends_its_process(tmp_path: Path, case: str) -> None:
    add_tokens, heads, compute, reason = ABORTS[case]
    file = file_of_zeros(tmp_path / "x.gguf", add_tokens, heads=heads)
    with pytest.raises(ModelError) as caught, llama_cpp.opened(file) as model:
        compute(model)
    assert caught.value.message.startswith("llama.cpp cannot read the file: ")
    assert caught.value.message.endswith(reason)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_file_that_is_read(tmp_path: Path) -> None:
    """The control: the same tokens and functions, without the fault."""
    with llama_cpp.opened(file_of_zeros(tmp_path / "x.gguf", sentencepiece("x", *BYTES))) as model:
        assert model.encode("x", start=False) == [3]
        assert model.logits([5, 6]).shape == (2, 260)
        assert model.answer([5], 3) == ([0, 0, 0], None)
        with pytest.raises(ModelError, match="invalid token"):
            model.logits([5000])
        assert model.encode("x", start=False) == [3], "a refusal does not end the process"


def test_a_process_that_the_system_ends(tmp_path: Path) -> None:
    file = file_of_zeros(tmp_path / "x.gguf", sentencepiece(*BYTES))
    killed = r"it was killed \(SIGKILL\), as a system does that has no memory"
    with llama_cpp.opened(file) as model:
        os.kill(model._llama._process.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=killed):
            model.encode("x", start=False)


def test_files_that_llama_cpp_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    for content in (b"", b"GGUF\x03\x00\x00\x00", b"something else"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"llama\.cpp cannot read the file: "), llama_cpp.opened(file):
            pass
        with pytest.raises(ModelError, match=r"llama\.cpp cannot quantize the file: "):
            llama_cpp.quantize(file, tmp_path / "y.gguf", 7)


def test_a_disk_that_is_full_while_it_quantizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files takes the place of the disk."""
    file, _ = gguf_llama(tmp_path)
    popen = programs.subprocess.Popen

    def limited(*words: Any, **options: Any) -> Any:
        return popen(*words, **options, preexec_fn=_limit_files)

    monkeypatch.setattr(programs.subprocess, "Popen", limited)
    with pytest.raises(ModelError, match=r"no space for the GGUF file: .* GiB are free at"):
        llama_cpp.quantize(file, tmp_path / "y.gguf", 1)
    monkeypatch.undo()
    llama_cpp.quantize(file, tmp_path / "y.gguf", 1)


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
