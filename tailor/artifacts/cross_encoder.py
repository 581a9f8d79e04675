"""Cross-encoders: models that read a query and a passage together and score them, loaded with sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tailor.artifacts.sentence_transformers import require_own_modules
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.layout import MODEL, MODEL_CONFIG, MODULES
from tailor.models import files, scoring_head
from tailor.spec.rules.files import is_hub_id
from tailor.store import OBJECT, Store

_BATCH = 32
"""Pairs in one forward pass."""


def find_cross_encoder(path: str) -> Path | None:
    """The folder of a cross-encoder: a Transformers model with a sequence-classification head. None if `path` is something else.

    path: a folder, also of a run with method rerank, a fsspec URL or a name on the Hugging Face Hub. ModelError when it is a classifier with several labels.
    """
    store = Store(str(files.find_folder(path)) if is_hub_id(path) else path)
    if store.is_committed(MODEL):
        store = store.join(MODEL)
    if not store.exists(MODEL_CONFIG):
        return None
    folder, config = store.local_path(), OBJECT.read(store, MODEL_CONFIG)
    try:
        classifies = scoring_head.is_declared(config)
        labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    except TypeError:
        raise ModelError(f"{path}/{MODEL_CONFIG} is damaged", hint="copy the model again") from None
    if classifies and labels != 1:
        raise ModelError(
            f"{path} is a classifier with {labels} labels, and a score needs one",
            hint="use a cross-encoder with one label",
        )
    return folder if classifies else None


class CrossEncoderModel:
    """Scores pairs of texts. It runs no code of the model's folder."""

    def __init__(self, path: str) -> None:
        """Load the model. ModelError when it cannot be loaded, or sentence-transformers is not installed."""
        import torch
        from safetensors import SafetensorError

        require_package(path)
        from sentence_transformers import CrossEncoder

        folder = find_cross_encoder(path)
        assert folder is not None
        if (folder / MODULES).exists():
            require_own_modules(folder, path)
        files.weight_files(folder)
        self._path = path
        load_tokenizer(str(folder))  # without its files, transformers makes an empty one
        try:
            _require_complete(folder, path)
            self._model = CrossEncoder(
                str(folder),
                device="cuda" if torch.cuda.is_available() else "cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
                activation_fn=torch.nn.Identity(),  # logits, not probabilities
            )
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            ImportError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise ModelError(
                f"sentence-transformers cannot load {path}: {' '.join(str(error).split())[:200]}"
            ) from error

    @property
    def max_length(self) -> int:
        """The most tokens of a pair that it reads. The end of a longer text of the pair is cut off."""
        return int(self._model.tokenizer.model_max_length)

    def lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """The number of tokens of each (query, passage), with what the tokenizer puts around them."""
        queries, passages = zip(*pairs, strict=True)
        found = self._model.tokenizer(list(queries), list(passages), truncation=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The logit of each (query, passage). ModelError for NaN and infinite ones."""
        scores = self._model.predict(list(pairs), batch_size=_BATCH, show_progress_bar=False)
        found: list[float] = np.asarray(scores, np.float64).reshape(len(pairs)).tolist()
        if not np.isfinite(found).all():
            raise ModelError(f"{self._path}: its scores are NaN or infinite", hint="check its weights")
        return found


def _require_complete(folder: Path, path: str) -> None:
    """ModelError when the weights lack tensors, which transformers would initialize randomly. Reads no weights into memory."""
    from transformers import AutoModelForSequenceClassification

    _, loaded = AutoModelForSequenceClassification.from_pretrained(
        str(folder),
        device_map="meta",
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"{path}: the weights lack {len(missing)} tensors, for example {missing[0]}",
            hint="use a complete cross-encoder",
        )


def require_package(path: str) -> None:
    """ModelError when sentence-transformers is not installed. path: of the model, for the message."""
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        raise ModelError(
            f"{path} is a cross-encoder, and the package sentence-transformers is not installed",
            hint="pip install 'tailor[sentence-transformers]' on every machine that scores",
        ) from None
