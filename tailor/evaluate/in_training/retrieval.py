"""Retrieval while training: a small collection searched before the first step and at every evaluation."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch.distributed as dist

from tailor.encode.tokenizer import load_tokenizer
from tailor.evaluate.retrieval.collection import Collection, Text, read_collection
from tailor.evaluate.retrieval.search import Search
from tailor.models.embedding.embedder import Embedder, settings_of
from tailor.spec.tasks.retrieval import Searched
from tailor.train.session import Session, When
from tailor.train.step import Totals

KEY = "evaluate.retrieval.data"


class Probe:
    """Searches the collection and reports the figures. Every rank embeds a share of the texts."""

    def __init__(self, settings: Searched) -> None:
        self._settings = settings
        self._told = False
        """That texts are cut, which is the same at every evaluation."""

    @cached_property
    def _collection(self) -> Collection:
        settings = self._settings
        return read_collection(settings.data, KEY, settings.query_instruction, settings.corpus_instruction)

    def __call__(self, session: Session, when: When, step: int) -> None:
        """DataError when the collection cannot be read: before the first step, not at the first evaluation."""
        host, collection = session.host, self._collection
        if when == "end" or (when == "start" and host.resume() is not None):
            return
        plan = session.plan
        assert plan.method.embedding is not None
        embedder = Embedder(
            session.model,
            load_tokenizer(plan.model.path, plan.model.revision),
            settings_of(session.model, plan.method.embedding, plan.batches.max_length),
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
            return
        if truncated and not self._told:
            session.say(
                f"evaluate.retrieval: {truncated:,} texts are longer than the {embedder.max_length:,} tokens that the "
                "model reads (data.max_length); their ends are left out"
            )
            self._told = True
        figures = [one.figures for one in search.found()]
        host.report(
            {
                "kind": "retrieval",
                "step": step,
                **{name: float(np.mean([one[name] for one in figures])) for name in figures[0]},
                "queries": len(collection.queries),
                "passages": len(collection.corpus),
                "truncated": truncated,
            }
        )


def _embedded(embedder: Embedder, texts: list[Text], session: Session) -> tuple[list[int], np.ndarray]:
    """Numbers and embeddings of all texts but blank ones, by instruction; the shares of all ranks put together."""
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
