"""Retrieval during training: a small collection is searched before the first step and at every evaluation."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch.distributed as dist

from tailor.encode.published_embedder import text_format
from tailor.encode.tokenizer import model_tokenizer
from tailor.evaluate.retrieval.collection import Collection, Text, read_collection
from tailor.evaluate.retrieval.search import Search
from tailor.models.embedding.embedder import Embedder, settings_of
from tailor.spec.tasks.retrieval import Searched
from tailor.train.session import Session, When
from tailor.train.step import Totals

KEY = "evaluate.retrieval.data"


class Probe:
    """Embeds and searches the collection, and reports the retrieval metrics. The texts are divided among the ranks."""

    def __init__(self, settings: Searched) -> None:
        self._settings = settings
        self._warned_truncation = False
        """The truncation warning is shown once: the number is the same at every evaluation."""

    @cached_property
    def _collection(self) -> Collection:
        settings = self._settings
        return read_collection(settings.data, KEY, settings.query_instruction, settings.corpus_instruction)

    def __call__(self, session: Session, when: When, step: int) -> dict[str, float] | None:
        """Measure at the start and at evaluations; returns the metrics on rank 0. DataError when the collection cannot be read.

        The collection is read at the first call, before the first step, so a mistake in it ends the run early.
        """
        host, collection = session.host, self._collection
        if when == "end" or (when == "start" and host.resume() is not None):
            return None
        if when == "start":
            session.say(
                f"searching {collection.passages:,} passages for {len(collection.queries):,} queries before training",
                phase="retrieval_before",
            )
        plan = session.plan
        assert plan.method.embedding is not None
        embedder = Embedder(
            session.model,
            model_tokenizer(plan.model),
            settings_of(
                session.model,
                plan.method.embedding,
                plan.batches.max_length,
                text_format(plan.model.path, plan.model.revision),
            ),
            dimension=self._settings.dimension,
        )
        search = Search(collection, ignore_identical_ids=self._settings.data.ignore_identical_ids)
        was_training = session.model.training
        session.model.eval()
        with session.autocast():
            search.add_queries(*_embedded(embedder, collection.queries, session))
            search.add_passages(*_embedded(embedder, collection.corpus, session))
        session.model.train(was_training)
        totals = Totals(session.device)
        totals.add_number("truncated", embedder.truncated)
        truncated = int(totals.over_workers(session.host.world)["truncated"])
        if host.rank != 0:
            return None
        if truncated and not self._warned_truncation:
            session.say(
                f"evaluate.retrieval: {truncated:,} texts are longer than data.max_length ({embedder.max_length:,} tokens); "
                "they are truncated"
            )
            self._warned_truncation = True
        figures = [one.figures for one in search.results()]
        means = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
        host.report(
            {
                "kind": "retrieval",
                "step": step,
                **means,
                "queries": len(collection.queries),
                "passages": collection.passages,
                **({"missing": collection.missing} if collection.missing else {}),
                "truncated": truncated,
            }
        )
        return means


def _embedded(embedder: Embedder, texts: list[Text], session: Session) -> tuple[list[int], np.ndarray]:
    """The numbers of all non-blank texts and their embeddings, float32[n, dimension], gathered from all ranks.

    A batch has texts of one instruction only.
    """
    rank, world = session.host.rank, session.host.world
    groups: dict[str | None, list[int]] = {}
    for number, text in enumerate(texts):
        if text.text:
            groups.setdefault(text.instruction, []).append(number)
    numbers: list[int] = []
    parts: list[np.ndarray] = []
    for instruction, group in groups.items():
        mine = sorted(group, key=lambda number: len(texts[number].text))[rank::world]
        numbers += mine
        parts.append(embedder.encode([texts[number].text for number in mine], instruction))
    shares = [(numbers, np.concatenate(parts))]
    if world > 1:
        shares = [([], parts[0]) for _ in range(world)]
        dist.all_gather_object(shares, (numbers, np.concatenate(parts)))
    return [number for share, _ in shares for number in share], np.concatenate([part for _, part in shares])
