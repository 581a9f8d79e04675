"""Passages scored by an embedding model (`data.retrieve.embedder`): the cosine of each with the question."""

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
from tailor.spec.data import Data
from tailor.spec.rules.files import is_hub_id
from tailor.store import Store

KEY = "data.retrieve.embedder"
DIGITS = 4
"""Scores are rounded to so many, and equal ones fall to the earlier passage: two kinds of CPU differ by about 1e-6."""
REMEMBERED = 2048
"""Passages whose embeddings are kept, for many questions are often asked of one document."""
PROCESS_BYTES = 1 << 30
"""What a process takes beside the embedder's weights."""


Unit = tuple[np.ndarray, bool]
"""An embedding, and whether its text was longer than the model reads."""


class Embeds(Protocol):
    """A loaded model that embeds one text. asks: the text is a question, not a passage."""

    def __call__(self, text: str, *, asks: bool) -> Unit: ...


def scorer_of(data: Data) -> Scorer | None:
    """What scores the passages of long prompts; None where nothing but BM25 does. The model is not loaded yet.

    ModelError when it makes no embeddings, is not there, or needs a package that is not installed.
    """
    if data.on_long != "retrieve" or data.retrieve is None or data.retrieve.embedder is None:
        return None
    return Dense(data.retrieve.embedder, data.retrieve.query_instruction)


class Dense:
    """Scores passages. Each process loads the model once, when it scores first, and holds it.

    Every text goes through the model alone, on one thread of a CPU: beside others, or cut for several threads, its numbers
    would move by rounding with what stands beside it, and a near tie would fall otherwise in another process.
    """

    def __init__(self, path: str, instruction: str | None) -> None:
        with _named():
            found = _find(path)
            if found.published and instruction is not None:
                raise ModelError(
                    f"data.retrieve.query_instruction has no effect: {path} is a sentence-transformers model, which "
                    "declares its prompts itself",
                    hint="leave it out",
                )
            self.identity = _digest(instruction or "", *map(files.contents, found.folders))
            stored = sum(size for folder in found.folders for size in files.numbers(folder))
        # In float32, which is the most that it is held in.
        self.memory = PROCESS_BYTES + 4 * stored
        self.truncated = 0
        self._path, self._instruction = path, instruction
        self._question: Callable[[str], Unit] | None = None
        self._passage: Callable[[str], Unit] | None = None

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """The cosine of each text's embedding with the question's, to four digits. Blank texts come last."""
        with _named(), _one_thread():
            if not question.strip():
                return [0.0] * len(texts)
            if self._question is None or self._passage is None:
                embeds = self._load()
                self._question = partial(_unit, embeds, self._path, asks=True)
                self._passage = lru_cache(maxsize=REMEMBERED)(partial(_unit, embeds, self._path, asks=False))
            asked, cut = self._question(question)
            self.truncated += cut
            scores = []
            for text in texts:
                if not text.strip():
                    scores.append(-1.0)
                    continue
                vector, cut = self._passage(text)
                self.truncated += cut
                scores.append(round(float((asked * vector).sum()), DIGITS))
            return scores

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: another process loads it itself."""
        return {**self.__dict__, "_question": None, "_passage": None}

    def _load(self) -> Embeds:
        found = _find(self._path)
        if _digest(self._instruction or "", *map(files.contents, found.folders)) != self.identity:
            raise ModelError(
                f"{self._path} on {socket.gethostname()} is another model than where the run was started",
                hint="put the model where all machines see the same files",
            )
        if found.published:
            from tailor.artifacts.sentence_transformers import Published

            return Published(found.folders[0], self._path)
        return _Trained(found.url, self._instruction)


def _unit(embeds: Embeds, path: str, text: str, *, asks: bool) -> Unit:
    """A text's embedding, float64[n] of length 1 (0 where the model gives all zeros), and whether the text was cut."""
    vector, cut = embeds(text, asks=asks)
    vector = vector.astype(np.float64)
    if not np.isfinite(vector).all():
        raise ModelError(f"the embeddings of {path} are no numbers", hint="take another model")
    length = float(np.sqrt((vector * vector).sum()))
    return vector / length if length else vector, cut


class _Trained:
    """A run of gritlm, or the folder of its adapter or model."""

    def __init__(self, url: str, instruction: str | None) -> None:
        from tailor.artifacts.load import load_embedder

        self._embedder = load_embedder(url, device="cpu")
        self._instruction = instruction

    def __call__(self, text: str, *, asks: bool) -> tuple[np.ndarray, bool]:
        before = self._embedder.truncated
        (vector,) = self._embedder.encode([text], self._instruction if asks else None)
        return vector, self._embedder.truncated > before


class _Found:
    """Where an embedder lies. folders: of all that its embeddings follow from, its own first. url: what is loaded.

    published: whether it is in the layout of sentence-transformers.
    """

    def __init__(self, url: str, folders: Sequence[Path], published: bool) -> None:
        self.url, self.folders, self.published = url, folders, published


def _find(path: str) -> _Found:
    """ModelError when there is nothing that embeds."""
    from tailor.artifacts.base_model import base_record_of
    from tailor.artifacts.load import find_artifact
    from tailor.artifacts.sentence_transformers import require_sentence_transformers
    from tailor.models.embedding.settings import Embedding

    url = str(files.find_folder(path)) if is_hub_id(path) else path
    store = Store(url)
    if store.exists(MODULES) and not store.exists(EMBEDDING):
        require_sentence_transformers(path)
        return _Found(url, [store.local_path()], published=True)
    artifact, run = find_artifact(store)
    folder = artifact.local_path()
    if not (folder / EMBEDDING).is_file():
        raise ModelError(
            f"{path} makes no embeddings: it has neither {EMBEDDING}, as runs of gritlm have, nor {MODULES}, as models of "
            "sentence-transformers have",
            hint="name a model that embeds, or leave the embedder out for BM25",
        )
    Embedding.read(folder, artifact.url)
    folders = [folder]
    if artifact.exists(ADAPTER_CONFIG):
        base_record = base_record_of(folder, run)
        folders.append(files.find_folder(base_record.path, base_record.revision))
    return _Found(url, folders, published=False)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def _named() -> Iterator[None]:
    """Errors begin with the key that they are about."""
    try:
        yield
    except TailorError as error:
        if error.message.startswith("data.retrieve."):
            raise
        raise ModelError(f"{KEY}: {error.message}", hint=error.hint) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
