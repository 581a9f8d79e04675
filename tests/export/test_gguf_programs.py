"""The programs around llama.cpp: errors of the converter, and what it gets to see of the model and of the machine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tailor.errors import ModelError
from tailor.export.gguf import converter, programs
from tests.helpers.models import sentencepiece_bytes, tiny_llama
from tests.helpers.trained_runs import read_json


def test_a_converter_that_fails(tmp_path: Path) -> None:
    script, model = tmp_path / converter.SCRIPT, tmp_path / "model"
    model.mkdir()
    for body, reason in (
        ("raise ValueError('Mixed \\x1b[31m norms')", r"the model: ValueError: Mixed \\x1b\[31m norms; see"),
        (
            "raise NotImplementedError('BPE pre-tokenizer was not recognized - update get_vocab')",
            "splits texts with no pattern like the tokenizer's; export as huggingface",
        ),
        (
            "gguf = type('X', (), {})\nprint('gguf.NEW', flush=True)\ngguf.NEW",
            "newer than the installed package gguf, which has no NEW; pip install -U gguf",
        ),
        (
            "{}['n_ctx']",
            "the model: it needs the key n_ctx in config.json; copy it",
        ),
        (
            "raise FileNotFoundError('File not found: /tmp/x/tokenizer.model')",
            r"it needs the file tokenizer.model .* missing; copy tokenizer.model",
        ),
        ("pass", "it ended without a message"),
    ):
        script.write_text(body)
        with pytest.raises(ModelError, match=reason):
            converter.convert(script, model, tmp_path / "out.gguf", "f16", "mine")


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose tokenizer is loaded by code beside it where that is trusted, with modules named like the programs' own.

    The second is the file that the code writes.
    """
    model = sentencepiece_bytes(tiny_llama(tmp_path / "model"))
    path, marker = model / "tokenizer_config.json", tmp_path / "marker"
    path.write_text(json.dumps(read_json(path) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    for name in ("own", "gguf", "json"):
        (model / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    return model, marker


def test_the_converter_gets_no_code(foreign: tuple[Path, Path], tmp_path: Path) -> None:
    model, marker = foreign
    seen = programs.without_code(model, tmp_path / "seen")
    assert {path.name for path in model.iterdir() if path.is_file() and path.suffix != ".py"} == {
        path.name for path in seen.iterdir()
    }
    AutoTokenizer.from_pretrained(seen, trust_remote_code=True)  # as the converter does
    assert not marker.exists()
    with contextlib.suppress(AttributeError):  # it has no class Own
        AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    assert marker.exists(), "the control: the code runs where it is seen"


def test_the_converter_gets_no_secrets_and_no_foreign_modules(
    foreign: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, marker = foreign
    script = tmp_path / converter.SCRIPT
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nimport json\n"
        f"Path({str(tmp_path / 'seen')!r}).write_text(json.dumps(dict(os.environ)))\nPath(sys.argv[3]).touch()"
    )
    monkeypatch.chdir(model)
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_DATABASE", "PYTHONPATH"):
        monkeypatch.setenv(name, str(model))
    converter.convert(script, model, tmp_path / "out.gguf", "f32", "mine")
    seen = read_json(tmp_path / "seen")
    assert str(model) not in seen.values()
    assert seen["HF_HUB_OFFLINE"] == seen["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    command = ["-c", "import json"]
    assert programs.run(command, tmp_path, 0) == (0, "")
    assert not marker.exists()
    programs.run(command, model, 0)
    assert marker.exists(), "the control: Python imports from the folder in which a program runs"


def test_a_program_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_START", 0)
    monkeypatch.setattr(programs, "_SLOWEST", 2**60)
    script, model = tmp_path / converter.SCRIPT, tmp_path / "model"
    model.mkdir()
    script.write_text("import time\ntime.sleep(600)")
    with pytest.raises(ModelError, match="it did not end within 0 minutes"):
        converter.convert(script, model, tmp_path / "out.gguf", "f32", "mine")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    script, model = tmp_path / converter.SCRIPT, tmp_path / "model"
    model.mkdir()
    for message in (
        "28, 'No space left on device'",
        "'16704 requested and 5632 written'",
    ):  # the second is NumPy's
        script.write_text(f"raise OSError({message})")
        with pytest.raises(ModelError, match=r"no space for the GGUF file: .* GiB are free"):
            converter.convert(script, model, tmp_path / "out.gguf", "f32", "mine")
