"""A folder with a proven GGUF file in place of the weights, for the export forms that have one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import ModelError
from tailor.export.gguf import converter, llama_cpp
from tailor.export.gguf.types import GgufType
from tailor.layout import EXPORT_RECORD, GENERATIVE_ATTENTION, GGUF_FILE, GGUF_RECORD, MERGE_RECORD
from tailor.store import JsonFile, run_files

if TYPE_CHECKING:
    from tailor.export.gguf.proof import Proof
    from tailor.export.request import Selection

RECORD_FILE = JsonFile(dict[str, Any], "export it again")


def check_gguf(selection: Selection) -> None:
    """ModelError when no GGUF file can be made of the run, as far as its configuration says."""
    if run_files.ranks(selection.run) or run_files.only_embeds(selection.run):
        raise ModelError(
            "GGUF files are made of models that generate text, and this run trained an embedder or a reranker",
            hint="export as sentence-transformers",
        )
    if selection.artifact.exists(GENERATIVE_ATTENTION):
        raise ModelError(
            "llama.cpp reads prompts causally, but the model was trained with method.generative_attention: prefix_lm",
            hint="use it with `tailor generate`, `chat` and `evaluate`",
        )
    llama_cpp.require()
    script = converter.find_converter(selection.request.llama_cpp)
    converter.check_architecture(script, selection.architecture)
    from tailor.export.gguf.proof import require_memory  # imports torch

    require_memory(selection.model_folder)


def replace_weights(folder: Path, selection: Selection, kind: GgufType) -> Proof:
    """Write the GGUF file of the model in `folder`, and remove the files that it replaces: weights, tokenizer and template.

    ModelError when llama.cpp cannot convert the model, or when the file is not the model.
    """
    from tailor.export.gguf.write import write_gguf  # imports torch

    proof = write_gguf(folder, selection.run, kind, converter.find_converter(selection.request.llama_cpp))
    for path in folder.iterdir():
        if path.is_file() and path.name not in (GGUF_FILE, EXPORT_RECORD, MERGE_RECORD):
            path.unlink()
    record = {"type": kind.name, "proof": proof.line(), **proof.as_dict()}
    (folder / GGUF_RECORD).write_text(RECORD_FILE.text(record))
    return proof
