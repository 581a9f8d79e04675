"""Scores passages with an embedding model (`data.retrieve.embedder`): the cosine similarity with the question."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tailor.encode.truncation import Scorer
from tailor.errors import ModelError, TailorError
from tailor.layout import ADAPTER_CONFIG, EMBEDDING, MODULES
from tailor.models import files
from tailor.models.own_code import UntrustedCodeError
from tailor.spec.data import Data
from tailor.spec.rules.files import is_hub_id
from tailor.store import Store

KEY = "data.retrieve.embedder"
DIGITS = 4
"""Scores are rounded to this many digits, and the earlier passage wins a tie: scores of different CPU types differ by 1e-6."""
CACHED_PASSAGES = 2048
"""Number of cached passage embeddings. Data sets often have many questions on one document."""
PROCESS_BYTES = 1 << 30
"""Memory of a process in addition to the embedder's weights, in bytes."""


UnitEmbedding = tuple[np.ndarray, bool]
"""(embedding, whether its text was truncated)."""


class Embeds(Protocol):
    """A loaded model that embeds one text. is_query: the text is a question, not a passage."""

    def __call__(self, text: str, *, is_query: bool) -> UnitEmbedding: ...


def scorer_of(data: Data) -> Scorer | None:
    """The scorer for passages of long prompts; None when `data.retrieve` has no embedder and uses BM25.

    The model is not loaded yet. ModelError when it does not exist, is no embedding model, or needs a package that is not
    installed.
    """
    if data.on_long != "retrieve" or data.retrieve is None or data.retrieve.embedder is None:
        return None
    return Dense(data.retrieve.embedder, data.retrieve.query_instruction)


class Dense:
    """Scores passages by dense retrieval. Each process loads the model at its first call, and keeps it.

    Each text is embedded alone, on one CPU thread. In a batch, or on several threads, rounding would depend on the other
    texts and on the number of threads, so near ties could be decided differently in another process.
    """

    def __init__(self, path: str, instruction: str | None) -> None:
        with _named():
            found = _find(path)
            if found.published and instruction is not None:
                raise ModelError(
                    f"data.retrieve.query_instruction has no effect: {path} is a sentence-transformers model, which "
                    "defines its own prompts",
                    hint="remove it",
                )
            self.identity = _digest(instruction or "", *map(files.contents, found.folders))
            stored = sum(size for folder in found.folders for size in files.numbers(folder))
        # Weights are loaded in float32 or less: 4 bytes per parameter are an upper bound.
        self.memory = PROCESS_BYTES + 4 * stored
        self.truncated = 0
        self._path, self._instruction = path, instruction
        self._question: Callable[[str], UnitEmbedding] | None = None
        self._passage: Callable[[str], UnitEmbedding] | None = None

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """The cosine similarity of each text with the question, rounded to `DIGITS`. A blank text scores -1."""
        with _named(), _one_thread():
            if not question.strip():
                return [0.0] * len(texts)
            if self._question is None or self._passage is None:
                embeds = self._load()
                self._question = partial(_unit, embeds, self._path, is_query=True)
                self._passage = lru_cache(maxsize=CACHED_PASSAGES)(
                    partial(_unit, embeds, self._path, is_query=False)
                )
            question_embedding, cut = self._question(question)
            self.truncated += cut
            scores = []
            for text in texts:
                if not text.strip():
                    scores.append(-1.0)
                    continue
                vector, cut = self._passage(text)
                self.truncated += cut
                scores.append(round(float((question_embedding * vector).sum()), DIGITS))
            return scores

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the model: each process loads it itself."""
        return {**self.__dict__, "_question": None, "_passage": None}

    def _load(self) -> Embeds:
        found = _find(self._path)
        if _digest(self._instruction or "", *map(files.contents, found.folders)) != self.identity:
            raise ModelError(
                f"{self._path} has different files on {socket.gethostname()} than on the machine that started the run",
                hint="put the model into storage that all machines share",
            )
        if found.published:
            from tailor.artifacts.sentence_transformers import SentenceTransformersModel

            return SentenceTransformersModel(found.folders[0], self._path)
        return _TrainedEmbedder(found.url, self._instruction)


def _unit(embeds: Embeds, path: str, text: str, *, is_query: bool) -> UnitEmbedding:
    """The normalized embedding, float64[n] (all zeros stay zeros), and whether the text was truncated."""
    vector, cut = embeds(text, is_query=is_query)
    vector = vector.astype(np.float64)
    if not np.isfinite(vector).all():
        raise ModelError(f"the embeddings of {path} are NaN or infinite", hint="use another model")
    length = float(np.sqrt((vector * vector).sum()))
    return vector / length if length else vector, cut


class _TrainedEmbedder:
    """Embeds with a run of gritlm, or with its adapter or model folder."""

    def __init__(self, url: str, instruction: str | None) -> None:
        from tailor.artifacts.load_embedder import load_embedder

        self._embedder = load_embedder(url, device="cpu")
        self._instruction = instruction

    def __call__(self, text: str, *, is_query: bool) -> tuple[np.ndarray, bool]:
        before = self._embedder.truncated
        (vector,) = self._embedder.encode([text], self._instruction if is_query else None)
        return vector, self._embedder.truncated > before


class _EmbedderFiles:
    """The files of an embedder.

    url: what is loaded. folders: all folders that decide its embeddings, its own first, then the base's. published: whether
    it has the layout of sentence-transformers.
    """

    def __init__(self, url: str, folders: Sequence[Path], published: bool) -> None:
        self.url, self.folders, self.published = url, folders, published


def _find(path: str) -> _EmbedderFiles:
    """Find the files of an embedder. ModelError when `path` is no embedding model."""
    from tailor.artifacts.base_model import base_record_of
    from tailor.artifacts.find import find_artifact
    from tailor.artifacts.sentence_transformers import require_sentence_transformers
    from tailor.models.embedding.settings import Embedding

    url = str(files.find_folder(path)) if is_hub_id(path) else path
    store = Store(url)
    if store.exists(MODULES) and not store.exists(EMBEDDING):
        require_sentence_transformers(path)
        return _EmbedderFiles(url, [store.local_path()], published=True)
    artifact, run = find_artifact(store)
    folder = artifact.local_path()
    if not (folder / EMBEDDING).is_file():
        raise ModelError(
            f"{path} is not an embedding model: it has neither {EMBEDDING} (runs of gritlm) nor {MODULES} "
            "(sentence-transformers)",
            hint="give an embedding model, or remove the embedder to use BM25",
        )
    Embedding.read(folder, artifact.url)
    folders = [folder]
    if artifact.exists(ADAPTER_CONFIG):
        base_record = base_record_of(folder, run)
        folders.append(files.find_folder(base_record.path, base_record.revision))
    return _EmbedderFiles(url, folders, published=False)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def _named() -> Iterator[None]:
    """Prefix the messages of errors with the recipe key."""
    try:
        yield
    except UntrustedCodeError as error:
        raise ModelError(f"{KEY}: {error.message}", hint="use an embedder without code of its own") from error
    except TailorError as error:
        if error.message.startswith("data.retrieve."):
            raise
        raise ModelError(f"{KEY}: {error.message}", hint=error.hint) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one CPU thread, for reproducible sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
