"""Published embedding models: folders in the sentence-transformers layout, loaded with that package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tailor.encode.published_embedder import parse_modules
from tailor.errors import ModelError
from tailor.layout import MODULES
from tailor.models import files

_PACKAGE = "sentence_transformers."
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "StaticEmbedding")
_PASSAGES = ("document", "passage", "corpus")
"""Prompt names for passages, in the order in which sentence-transformers looks for them."""


def require_sentence_transformers(path: str) -> Any:
    """The package. ModelError when it is not installed."""
    try:
        import sentence_transformers
    except ImportError:
        raise ModelError(
            f"{path} is a sentence-transformers model, but the package sentence-transformers is not installed",
            hint="pip install 'tailor[sentence-transformers]' on every machine that prepares data, or use a run of gritlm",
        ) from None
    return sentence_transformers


class SentenceTransformersModel:
    """Embeds one text at a time, on the CPU in float32, with the prompts that the model declares."""

    def __init__(self, folder: Path, path: str) -> None:
        """Load the model. path: for messages. ModelError when it cannot be loaded."""
        import torch

        package = require_sentence_transformers(path)
        require_own_modules(folder, path)
        files.weight_files(folder)
        try:
            self._model = package.SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"sentence-transformers cannot load {path}: {' '.join(str(error).split())[:200]}"
            ) from error

    def __call__(self, text: str, *, is_query: bool) -> tuple[np.ndarray, bool]:
        """The embedding, float32[n], and whether the text was truncated."""
        encode = self._model.encode_query if is_query else self._model.encode_document
        (vector,) = encode([text], batch_size=1, show_progress_bar=False, convert_to_numpy=True)
        return vector, self._cuts(text, ("query",) if is_query else _PASSAGES)

    def _cuts(self, text: str, names: tuple[str, ...]) -> bool:
        """Whether the text with its prompt is longer than max_seq_length. names: of the prompt, in order of preference."""
        max_length = self._model.max_seq_length
        if max_length is None:
            return False
        prompt = next((self._model.prompts[name] for name in names if name in self._model.prompts), "")
        ids = self._model.tokenizer((prompt or "") + text, truncation=False, verbose=False)["input_ids"]
        return len(ids) > max_length


def module_types(folder: Path, path: str) -> list[str]:
    """The classes of a model's modules, in order. ModelError when modules.json is damaged. path: for messages."""
    return [kind for kind, _ in parse_modules((folder / MODULES).read_text(), path)]


def require_own_modules(folder: Path, path: str) -> None:
    """ModelError for modules that could run code of the folder or of any package.

    They are modules outside the package sentence_transformers, and those of the package that load classes by name from
    their own configuration (Router, WordEmbeddings …).
    """
    for kind in module_types(folder, path):
        if not kind.startswith(_PACKAGE) or kind.rpartition(".")[2] not in _MODULES:
            raise ModelError(
                f"{path} has the custom module {kind}, whose code tailor does not run",
                hint="use another model",
            )
