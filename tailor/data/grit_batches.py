"""Batches of two streams: queries with their passages, and examples to generate.

A step's queries are of one source, so that passages are told from others of the same task. Both streams are a pure
function of (seed, step), as all batches are: an epoch shows every query once, and the other stream goes round beside it.

    stream of texts      a group of the store with several examples: a query, passages that answer it (`is_positive`), and
                         others. A step draws one that answers and `group_size - 1` others, anew in every epoch.
    stream of examples   the groups of one example
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from tailor.data.batches import Batches, BatchSpec
from tailor.data.rows import Batch, Row
from tailor.data.token_store import Split
from tailor.errors import DataError


class GritBatch(list[Row]):
    """The texts of a step, longest first, each a row of its own, and then the examples to generate.

    text_index: int[texts], where each text row stands among the batch's texts: queries first, then the passages of the first
    query with the one that answers it leading, of the second, and so on. queries, group: how many there are, and of each
    how many passages.
    """

    def __init__(self, split: Split, texts: np.ndarray, examples: Sequence[int]) -> None:
        """texts: int[queries, 1 + group] examples of the split; examples: of it, to generate."""
        self._split, lengths = split, split.lengths
        ordered = np.concatenate([texts[:, 0], texts[:, 1:].reshape(-1)]).astype(np.int64)
        self.text_index = np.argsort(-lengths[ordered], kind="stable")
        self.queries, self.group = len(texts), texts.shape[1] - 1
        super().__init__([(int(example),) for example in [*ordered[self.text_index], *examples]])

    @property
    def texts(self) -> int:
        """How many of the rows are texts to embed."""
        return len(self.text_index)

    def text_examples(self) -> np.ndarray:
        """int[texts]: the example of the split at each index."""
        found = np.zeros(self.texts, np.int64)
        found[self.text_index] = [row[0] for row in self[: self.texts] if isinstance(row, tuple)]
        return found

    @cached_property
    def excluded(self) -> np.ndarray:
        """int64[k, 2]: (query, passage) that no loss may tell from each other, but never a query and its own answer.

        A passage with the text of one that answers the query by its row, and the answer of an equal query. Passages count
        from 0, as in `text_index`.
        """
        examples = self.text_examples()
        queries, passages = examples[: self.queries], examples[self.queries :]
        at: dict[bytes, list[int]] = {}
        for passage, example in enumerate(passages):
            at.setdefault(self._text(example), []).append(passage)
        asked: dict[bytes, list[int]] = {}
        for query, example in enumerate(queries):
            asked.setdefault(self._text(example), []).append(query)
        pairs = set()
        for query, example in enumerate(queries):
            for answer in self._answers(int(example)):
                pairs.update((query, passage) for passage in at.get(self._text(answer), ()))
            pairs.update((query, other * self.group) for other in asked[self._text(example)])
        kept = sorted(pair for pair in pairs if pair[1] != pair[0] * self.group)
        return np.array(kept, np.int64).reshape(-1, 2)

    def _text(self, example: int) -> bytes:
        found = self._split.example(int(example))
        start, stop = found.spans[0]
        return bytes(found.input_ids[start:stop].tobytes())

    def _answers(self, query: int) -> Iterator[int]:
        """All passages that answer a query by its row, drawn or not."""
        member = query + 1
        while member < len(self._split) and self._split.position[member]:
            if self._split.is_positive[member]:
                yield member
            member += 1


class GritBatches(Batches):
    """The batches of a method that embeds, generates, or both. `spec.streams` says which."""

    def __init__(self, split: Split, spec: BatchSpec) -> None:
        super().__init__(split.lengths, split.supervised, split.source, spec, split.position)
        assert spec.streams is not None
        self._split = split
        self._streams = spec.streams
        counts = self._ends - self._starts
        self._texts = counts > 1
        """bool[groups]: whether a group is a query with its passages."""
        self._round = lru_cache(maxsize=2)(self._make_round)

    @property
    def has_texts(self) -> bool:
        return bool(self._texts.any())

    @property
    def has_examples(self) -> bool:
        return bool((~self._texts).any())

    def supervised_tokens(self, batch: Batch) -> int:
        """Supervised targets of the examples to generate. Texts have none."""
        return super().supervised_tokens(
            list(batch)[batch.texts :] if isinstance(batch, GritBatch) else batch
        )

    def longest_text(self) -> int:
        """Tokens of the longest text to embed."""
        return int(self.lengths[np.repeat(self._texts, self._ends - self._starts)].max(initial=0))

    def longest_example(self) -> int:
        """Tokens of the longest example to generate."""
        return int(self.lengths[self._starts[~self._texts]].max(initial=0))

    def longest_row(self) -> int:
        return self.longest_example()

    def check(self, evaluation: GritBatches) -> None:
        """DataError where the rows lack a stream that the method learns, or have one that it does not."""
        mode = self._streams.mode
        texts, examples = "a query with passages", "a conversation or text to generate"
        for learned, here, elsewhere, what in (
            (self._streams.embeds, self.has_texts, evaluation.has_texts, texts),
            (self._streams.generates, self.has_examples, evaluation.has_examples, examples),
        ):
            if learned and not here:
                raise DataError(
                    f"method gritlm with mode: {mode} needs such rows, and no training row is {what}",
                    hint="add some to data.train, or set another method.mode",
                )
            if not learned and (here or elsewhere):
                raise DataError(
                    f"method gritlm with mode: {mode} learns nothing from rows that are {what}, and there are some",
                    hint="leave their sources out, or set method.mode: unified",
                )

    def evaluation(self) -> list[Batch]:
        """Every query and every example once, in the order of the store: queries with their first passages, then examples.

        Batches of queries are as large as in training, of one source each.
        """
        found: list[Batch] = []
        if self._streams.embeds:
            for source in np.unique(self.sources[self._starts[self._texts]]):
                groups = np.flatnonzero(self._texts & (self.sources[self._starts] == source))
                found += [self._embedding(part, None) for part in _cut(groups, self._streams.queries)]
        if self._streams.generates:
            examples = self._starts[~self._texts]
            size = self._streams.examples
            for start in range(0, len(examples), size):
                found.append(self._joined([], examples[start : start + size], None))
        return found

    def rows(self) -> list[Row]:
        return [row for batch in self.evaluation() for row in batch]

    def _make_epoch(self, epoch: int) -> list[Batch]:
        generator = np.random.default_rng([self.spec.seed, epoch])
        order = self._draw(generator)
        order = order[generator.permutation(len(order))]
        streams = self._streams
        if not streams.embeds:
            groups = order[~self._texts[order]]
            parts = [groups[at : at + streams.examples] for at in range(0, len(groups), streams.examples)]
            self._largest_first(parts, epoch)
            return [self._joined([], self._starts[part], None) for part in parts]
        queries = order[self._texts[order]]
        parts = [
            part
            for source in np.unique(self.sources[self._starts[queries]])
            for part in _cut(queries[self.sources[self._starts[queries]] == source], streams.queries)
        ]
        parts = [parts[at] for at in generator.permutation(len(parts))]
        self._largest_first(parts, epoch)
        before = epoch * len(parts)  # every epoch draws equally many
        return [
            self._joined(part, self._examples_of(before + at) if streams.generates else [], generator)
            for at, part in enumerate(parts)
        ]

    def _largest_first(self, parts: list[np.ndarray], epoch: int) -> None:
        """Move the first epoch's part with the largest group to its front: what takes the most memory fails at once."""
        if epoch == 0 and parts:
            first = int(np.argmax([self._sizes[part].max() for part in parts]))
            parts[0], parts[first] = parts[first], parts[0]

    def _embedding(self, groups: np.ndarray, generator: np.random.Generator | None) -> GritBatch:
        return self._joined(groups, [], generator)

    def _joined(
        self,
        groups: Sequence[int] | np.ndarray,
        examples: Sequence[int] | np.ndarray,
        generator: np.random.Generator | None,
    ) -> GritBatch:
        size = self._streams.group
        texts = np.array([self._drawn(int(group), size, generator) for group in groups], np.int64)
        ids = [int(example) for example in examples]
        ids.sort(key=lambda example: -int(self.lengths[example]))
        return GritBatch(self._split, texts.reshape(-1, 1 + size), ids)

    def _drawn(self, group: int, size: int, generator: np.random.Generator | None) -> list[int]:
        """A query, a passage that answers it, and `size - 1` that do not, each as often as needed; without a generator the first."""
        start, end = int(self._starts[group]), int(self._ends[group])
        passages = np.arange(start + 1, end)
        good, bad = (
            passages[self._split.is_positive[start + 1 : end]],
            passages[~self._split.is_positive[start + 1 : end]],
        )
        if generator is not None:
            good, bad = good[generator.permutation(len(good))], bad[generator.permutation(len(bad))]
        return [start, int(good[0]), *(int(bad[at % len(bad)]) for at in range(size - 1))]

    def _examples_of(self, step: int) -> np.ndarray:
        """The examples to generate of a step, counted from where these data begin: the next ones of an endless stream."""
        size = self._streams.examples
        found: list[int] = []
        at = step * size
        while len(found) < size:
            round_, begin = divmod(at, len(self._round(0)))
            part = self._round(round_)[begin : begin + size - len(found)]
            found += [int(example) for example in part]
            at += len(part)
        return np.array(found)

    def _make_round(self, number: int) -> np.ndarray:
        """All examples to generate in the order of a round, each as often as its source's weight says."""
        generator = np.random.default_rng([self.spec.seed, number, 1])
        order = self._draw(generator)
        order = order[~self._texts[order]]
        order = order[generator.permutation(len(order))]
        if number == 0:  # as with texts
            longest = int(np.argmax(self._sizes[order]))
            order[0], order[longest] = order[longest], order[0]
        return self._starts[order]


def _cut(groups: np.ndarray, size: int) -> list[np.ndarray]:
    """As few parts of at most `size` as possible, of equal sizes as nearly as possible: a tiny last batch has few others to tell from."""
    return np.array_split(groups, -(-len(groups) // size)) if len(groups) else []


def text_facts(batches: Batches, evaluation: Batches) -> dict[str, int]:
    """What the plan must know of texts to embed: how many a step embeds at most, and how long they are. DataError."""
    assert isinstance(batches, GritBatches)
    assert isinstance(evaluation, GritBatches)
    sizes = batches.spec.streams
    assert sizes is not None
    batches.check(evaluation)
    return {
        "texts_per_batch": sizes.queries * (1 + sizes.group),
        "longest_text": max(batches.longest_text(), evaluation.longest_text()),
    }
