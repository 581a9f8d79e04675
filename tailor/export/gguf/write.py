"""Makes a folder's GGUF file: converts its model, quantizes, and has the result proven."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tailor.artifacts.base_model import saved_dtype
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.export import probes
from tailor.export.bos import set_adds_bos
from tailor.export.gguf import converter, llama_cpp, programs
from tailor.export.gguf.proof import Proof, prove
from tailor.export.gguf.types import UNROUNDED, GgufType
from tailor.layout import GENERATION_CONFIG, GGUF_FILE
from tailor.printable import printable
from tailor.store import OBJECT, Store
from tailor.store import run_folder as runs
from tailor.store.scratch import scratch

_SLOTS = ("eot", "eom")
"""Metadata of a GGUF file in which stop tokens other than the EOS are named."""


def write_gguf(folder: Path, run: Store, kind: GgufType, script: Path) -> Proof:
    """Write the GGUF file of the model in `folder` beside it. script: llama.cpp's converter.

    Without a chat template, the file adds the BOS as the tokenizer does; with one, if the template writes it.
    ModelError when llama.cpp cannot convert the model, or when the file is not the model.
    """
    tokenizer = load_tokenizer(str(folder))
    has_template = tokenizer.template is not None
    # Always written: where it is missing, llama.cpp adds the BOS to SentencePiece tokenizers.
    set_adds_bos(folder, probes.starts_with_bos(tokenizer) if has_template else bool(tokenizer.prefix))
    unrounded = UNROUNDED[str(saved_dtype(folder)).removeprefix("torch.")]
    with scratch(folder) as temporary:
        file = temporary / f"{unrounded}.gguf"
        converter.convert(script, folder, file, unrounded, runs.name(run))
        file = _with_stops(file, _stop_ids(folder))
        if kind.name == unrounded:
            file.replace(folder / GGUF_FILE)
        else:
            llama_cpp.quantize(file, folder / GGUF_FILE, kind.ftype)
    return prove(folder / GGUF_FILE, folder, run, kind)


def _stop_ids(folder: Path) -> list[int]:
    ends = OBJECT.read_path(folder / GENERATION_CONFIG).get("eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or [])


def _with_stops(file: Path, stop_ids: Sequence[int]) -> Path:
    """The file with all stop tokens. llama.cpp knows the EOS, and most ends of a turn by their text."""
    with llama_cpp.opened(file) as gguf:
        missing = [token for token in stop_ids if token not in gguf.stop_ids]
    if not missing:
        return file
    if len(missing) > len(_SLOTS):
        raise ModelError(
            f"llama.cpp does not know {len(missing)} of the model's {len(stop_ids)} stop tokens, and a GGUF file can name only {len(_SLOTS)}",
            hint="remove some from eos_token_id in the run's generation_config.json",
        )
    named = [
        word
        for pair in zip(_SLOTS, missing, strict=False)
        for word in ("--special-token-by-id", pair[0], str(pair[1]))
    ]
    to = file.with_name(f"stops-{file.name}")
    files = [str(file.absolute()), str(to.absolute())]
    command = ["-m", "gguf.scripts.gguf_new_metadata", "--force", *named, *files]
    status, output = programs.run(command, file.parent, file.stat().st_size)
    if "[Errno 28]" in output:
        raise converter.no_space(to)
    if status != 0:
        raise ModelError(
            f"the stop tokens cannot be written into the GGUF file: {printable(output.strip()[-200:])}",
            hint="pip install -U 'tailor[gguf]'",
        )
    return to
