"""Makes a folder's GGUF file: converts its model, quantizes, and has the result proven."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tailor.artifacts.base_model import saved_dtype
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.export import probes
from tailor.export.bos import set_adds_bos
from tailor.export.gguf import converter, llama_cpp, programs, vocabulary
from tailor.export.gguf.proof import Proof, prove
from tailor.export.gguf.types import UNROUNDED, GgufType
from tailor.layout import GENERATION_CONFIG, GGUF_FILE
from tailor.store import OBJECT, Store
from tailor.store import run_folder as runs
from tailor.store.failures import reports_full
from tailor.store.scratch import scratch


def write_gguf(folder: Path, run: Store, kind: GgufType, script: Path) -> Proof:
    """Write the GGUF file of the model in `folder` beside it. script: llama.cpp's converter.

    Without a chat template, the file adds the BOS as the tokenizer does; with one, if the template writes it.
    ModelError when llama.cpp cannot convert the model, or when the file is not the model.
    """
    name = name_in_file(runs.name(run), _with_bos_setting(folder))
    unrounded = UNROUNDED[str(saved_dtype(folder)).removeprefix("torch.")]
    with scratch(folder) as temporary:
        file = temporary / f"{unrounded}.gguf"
        converter.convert(script, folder, file, unrounded, name)
        file = _with_stops(file, _stop_ids(folder))
        if kind.name == unrounded:
            file.replace(folder / GGUF_FILE)
        else:
            llama_cpp.quantize(file, folder / GGUF_FILE, kind.ftype)
    return prove(folder / GGUF_FILE, folder, run, kind)


def check_tokens(folder: Path, script: Path) -> None:
    """ModelError when llama.cpp cannot read the tokenizer of a model, or reads it as another one. No weights are needed.

    folder: has config.json, the tokenizer's files and generation_config.json, which are changed as in `write_gguf`.
    """
    tokenizer, stop_ids = _with_bos_setting(folder), _stop_ids(folder)
    with scratch(folder) as temporary:
        file = temporary / "tokens.gguf"
        converter.convert(script, folder, file, "f32", name_in_file("", tokenizer), tokens_only=True)
        with llama_cpp.opened(file) as gguf:
            vocabulary.compare(gguf, tokenizer, stop_ids)
            vocabulary.unknown_stops(gguf, stop_ids)


def name_in_file(name: str, tokenizer: Tokenizer) -> str:
    """The name that a GGUF file gives the model `name`.

    llama.cpp drops white space after the special tokens of a model whose name has `phi-3` or `phi3`, and of no other one
    (src/llama-vocab.cpp). So the tokenizer decides about that part of the name.
    """
    name = re.sub(r"phi-?3", "Phi 3", name, flags=re.IGNORECASE) or "model"
    texts = {token.content for token in tokenizer.added.values()}
    strips = any(token.rstrip for token in tokenizer.added.values())
    return f"{name} (Phi-3)" if strips and texts >= {"<unk>", "<s>", "</s>", "<|endoftext|>"} else name


def _with_bos_setting(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. Its setting of the BOS is always written: without it, llama.cpp adds it to SentencePiece ones."""
    tokenizer = load_tokenizer(str(folder))
    has_template = tokenizer.template is not None
    set_adds_bos(folder, probes.starts_with_bos(tokenizer) if has_template else bool(tokenizer.prefix))
    return tokenizer


def _stop_ids(folder: Path) -> list[int]:
    path = folder / GENERATION_CONFIG
    ends = OBJECT.read_path(path).get("eos_token_id") if path.is_file() else None
    return [ends] if isinstance(ends, int) else list(ends or [])


def _with_stops(file: Path, stop_ids: Sequence[int]) -> Path:
    """The file with all stop tokens. llama.cpp knows the EOS, and most ends of a turn by their text."""
    with llama_cpp.opened(file) as gguf:
        missing = vocabulary.unknown_stops(gguf, stop_ids)
    if not missing:
        return file
    named = [
        word
        for pair in zip(vocabulary.SLOTS, missing, strict=False)
        for word in ("--special-token-by-id", pair[0], str(pair[1]))
    ]
    to = file.with_name(f"stops-{file.name}")
    files = [str(file.absolute()), str(to.absolute())]
    command = ["-m", "gguf.scripts.gguf_new_metadata", "--force", *named, *files]
    status, output = programs.run(command, file.parent, file.stat().st_size)
    if status != 0 and reports_full(output):
        raise converter.no_space(to)
    if status != 0:
        raise ModelError(
            f"the stop tokens cannot be written into the GGUF file: {programs.ending(status, output)}",
            hint="pip install -U 'tailor[gguf]'",
        )
    return to
