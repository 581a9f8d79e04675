"""GRIT batches: queries with passages for the contrastive loss, and examples for the language-modeling loss.

All queries of a step come from one dataset or source, so that in-batch negatives belong to the same task. Both streams are a pure
function of (seed, step), as all batches are. An epoch contains every query once; the example stream repeats independently.

    text stream      groups with several examples: a query, its positive passages (`is_positive`) and its negatives. A step
                     draws one positive and `group_size - 1` negatives per query, with new draws in each epoch. The
                     negatives of a row without any are passages of other rows of its dataset or source.
    example stream   groups with one example, for generation
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from tailor.data.batches import Batches, BatchSpec, empty_epoch
from tailor.data.distinct import distinct_parts
from tailor.data.other_negatives import OtherNegatives, units_of
from tailor.data.rows import Batch, Row
from tailor.data.split import Split
from tailor.errors import DataError


class GritBatch(list[Row]):
    """The rows of a step: first the texts to embed, by default longest first, one per row; then the examples to generate.

    queries: number of queries (Q); group: passages per query (P / Q). text_index: int[Q + P], for each text row its index
    in the logical order: all queries, then the passages of query 0 with its positive first, the passages of query 1, and
    so on.
    """

    def __init__(
        self,
        split: Split,
        texts: np.ndarray,
        examples: Sequence[int],
        equal_queries: Callable[[bytes], Sequence[int]] = lambda text: (),
        first: str = "longest",
    ) -> None:
        """texts: int[Q, 1 + group] example indices, query first; examples: indices of the examples to generate;
        equal_queries: from the text of a query to the queries of the split that have it, if they are several; first: as in
        `StreamSizes`."""
        self._split, lengths, self._equal_queries = split, split.lengths, equal_queries
        ordered = np.concatenate([texts[:, 0], texts[:, 1:].reshape(-1)]).astype(np.int64)  # [Q + P]
        self.text_index = np.argsort(-lengths[ordered], kind="stable")  # [Q + P]
        if first != "longest":
            is_query = self.text_index < len(texts)  # bool[Q + P]
            late = ~is_query if first == "queries" else is_query
            self.text_index = self.text_index[np.argsort(late, kind="stable")]
        self.queries, self.group = len(texts), texts.shape[1] - 1
        super().__init__([(int(example),) for example in [*ordered[self.text_index], *examples]])

    @property
    def texts(self) -> int:
        """Number of rows that are texts to embed, Q + P."""
        return len(self.text_index)

    def text_examples(self) -> np.ndarray:
        """int[Q + P]: the example index of each text in the logical order of `text_index`."""
        examples = np.zeros(self.texts, np.int64)  # [Q + P]
        examples[self.text_index] = [row[0] for row in self[: self.texts] if isinstance(row, tuple)]
        return examples

    def scores(self) -> np.ndarray:
        """float32[Q, group]: a teacher's scores of the passages of each query, its positive first; NaN without one."""
        scores: np.ndarray = self._split.score[self.text_examples()[self.queries :]]  # [P]
        return scores.reshape(self.queries, self.group)

    @cached_property
    def excluded(self) -> np.ndarray:
        """int64[k, 2]: the (query, passage) pairs that must not count as negatives (false negatives).

        These are passages with the text of the query itself, or with that of any positive of the query in any row of the
        split that has a query of the same text. The pair of a query and its own drawn positive is never included. Passages
        count from 0 in the order of `text_index`.
        """
        examples = self.text_examples()  # [Q + P]
        queries, passages = examples[: self.queries], examples[self.queries :]  # [Q], [P]
        passages_by_text: dict[bytes, list[int]] = {}
        for passage, example in enumerate(passages):
            passages_by_text.setdefault(_text(self._split, int(example)), []).append(passage)
        queries_by_text: dict[bytes, list[int]] = {}
        for example in queries:
            queries_by_text.setdefault(_text(self._split, int(example)), []).append(int(example))
        pairs = set()
        for query, example in enumerate(queries):
            text = _text(self._split, int(example))
            same = {*queries_by_text[text], *self._equal_queries(text)}
            positives = (_text(self._split, positive) for one in same for positive in self._positives(one))
            for other in {text, *positives}:
                pairs.update((query, passage) for passage in passages_by_text.get(other, ()))
        kept = sorted(pair for pair in pairs if pair[1] != pair[0] * self.group)
        return np.array(kept, np.int64).reshape(-1, 2)

    def _positives(self, query: int) -> Iterator[int]:
        """All positive passages in the data row of a query, whether drawn or not."""
        member = query + 1
        while member < len(self._split) and self._split.position[member]:
            if self._split.is_positive[member]:
                yield member
            member += 1


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def _text(split: Split, index: int) -> bytes:
    """The tokens of a text, without its instruction and format."""
    example = split.example(index)
    start, stop = example.spans[0]
    return bytes(example.input_ids[start:stop].tobytes())


class GritBatches(Batches):
    """The batches of a method that embeds, generates, or both, as `spec.streams` says."""

    def __init__(self, split: Split, spec: BatchSpec) -> None:
        super().__init__(split.lengths, split.supervised, split.source, spec, split.position)
        assert spec.streams is not None
        self._split = split
        self._streams = spec.streams
        counts = self._ends - self._starts
        self._texts = counts > 1
        """bool[groups]: True for a query with its passages."""
        by_dataset = spec.streams.by == "dataset"
        self._units = units_of(split, self._starts) if by_dataset else self._group_sources
        self._round = lru_cache(maxsize=2)(self._make_round)
        self._others = OtherNegatives(self._starts, self._ends, self._texts, self._units)
        self._batches: dict[int, int] = {}
        """Number of batches of each epoch computed so far. It varies with `distinct`, by the passages drawn, and where a
        fractional weight or `samples` draws rows of several datasets."""

    @cached_property
    def _hashes(self) -> np.ndarray:
        """uint64[examples]: hashes of the texts, 8 bytes each."""
        return self._split.text_hashes()

    @cached_property
    def _equal_queries(self) -> dict[bytes, list[int]]:
        """Digest of a text -> the queries that have it, for texts that several queries have."""
        queries: dict[bytes, list[int]] = {}
        for query in self._starts[self._texts]:
            queries.setdefault(_digest(_text(self._split, int(query))), []).append(int(query))
        return {text: several for text, several in queries.items() if len(several) > 1}

    def _with_text(self, text: bytes) -> Sequence[int]:
        return self._equal_queries.get(_digest(text), ())

    @property
    def has_texts(self) -> bool:
        return bool(self._texts.any())

    @property
    def has_examples(self) -> bool:
        return bool((~self._texts).any())

    def supervised_tokens(self, batch: Batch) -> int:
        """Number of supervised targets of the examples to generate. Texts to embed have none."""
        return super().supervised_tokens(
            list(batch)[batch.texts :] if isinstance(batch, GritBatch) else batch
        )

    def longest_text(self) -> int:
        """Number of tokens of the longest text to embed."""
        return int(self.lengths[np.repeat(self._texts, self._ends - self._starts)].max(initial=0))

    def longest_example(self) -> int:
        """Number of tokens of the longest example to generate."""
        return int(self.lengths[self._starts[~self._texts]].max(initial=0))

    def max_rows(self) -> int:
        """Rows of the largest batch that are no texts."""
        return max(1, self._streams.examples)

    @property
    def sequences(self) -> int:
        """Number of examples to generate."""
        return int((~self._texts).sum())

    @property
    def most_queries(self) -> int:
        """Number of queries of the largest dataset or source."""
        return int(max(np.bincount(self._units[self._texts]), default=0))

    def distinct_texts(self) -> int:
        """Maximum number of texts in a batch of any epoch with `distinct`, where epochs differ; else 0."""
        if not self._streams.distinct:
            return 0
        return min(self.most_queries, self._streams.queries) * (1 + self._streams.group)

    def longest_row(self, evaluation: bool = False) -> int:
        return self.longest_example()

    def check(self, evaluation: GritBatches) -> None:
        """DataError when a stream that the mode needs has no rows, or when there are rows that the mode does not use."""
        mode = self._streams.mode
        texts, examples = "queries with passages", "conversations or texts to generate"
        for is_used, in_train, in_evaluation, what in (
            (self._streams.embeds, self.has_texts, evaluation.has_texts, texts),
            (self._streams.generates, self.has_examples, evaluation.has_examples, examples),
        ):
            if is_used and not in_train:
                raise DataError(
                    f"method gritlm with mode: {mode} needs training rows that are {what}, but there are none",
                    hint="add some to data.train, or set another method.mode",
                )
            if not is_used and (in_train or in_evaluation):
                raise DataError(
                    f"method gritlm with mode: {mode} cannot use rows that are {what}, but the data contain some",
                    hint="remove their sources, or set method.mode: unified",
                )

    def evaluation(self) -> list[Batch]:
        """Batches with every query and every example once, in the order of the store: first queries, then examples.

        Each query has its first positive and its first negatives. Query batches have the training size, and one dataset or
        source each.
        """
        batches: list[Batch] = []
        if self._streams.embeds:
            for unit in np.unique(self._units[self._texts]):
                groups = np.flatnonzero(self._texts & (self._units == unit))
                batches += [self._embedding(part, None) for part in _cut(groups, self._streams.queries)]
        if self._streams.generates:
            examples = self._starts[~self._texts]
            size = self._streams.examples
            for start in range(0, len(examples), size):
                batches.append(self._joined([], examples[start : start + size], None))
        return batches

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
        units = self._units[queries]
        of_units = [queries[units == unit] for unit in np.unique(units)]
        if streams.distinct:
            return self._distinct(epoch, of_units, generator)
        parts = [part for groups in of_units for part in _cut(groups, streams.queries)]
        parts = [parts[at] for at in generator.permutation(len(parts))]
        self._largest_first(parts, epoch)
        before = self._before(epoch, len(parts))
        return [
            self._joined(part, self._examples_of(before + at) if streams.generates else [], generator)
            for at, part in enumerate(parts)
        ]

    def _distinct(
        self, epoch: int, of_units: Sequence[np.ndarray], generator: np.random.Generator
    ) -> list[Batch]:
        """The batches of an epoch in which no two rows share a text. of_units: the query groups of each dataset or source."""
        streams = self._streams
        parts: list[np.ndarray] = []  # int[Q, 1 + group] examples each
        for groups in of_units:
            texts = np.array([self._drawn(int(group), streams.group, generator) for group in groups])
            parts += [texts[part] for part in distinct_parts(self._hashes[texts], streams.queries)]
        parts = [parts[at] for at in generator.permutation(len(parts))]
        if epoch == 0 and parts:  # as without `distinct`: a run that does not fit fails early
            first = int(np.argmax([int(self.lengths[part].sum(axis=1).max()) for part in parts]))
            parts[0], parts[first] = parts[first], parts[0]
        before = self._before(epoch, len(parts))
        return [
            self._batch_of(part, self._examples_of(before + at) if streams.generates else [])
            for at, part in enumerate(parts)
        ]

    def _before(self, epoch: int, batches: int) -> int:
        """Number of batches of the epochs before this one, which has `batches`. With sizes that vary, it computes them."""
        weights = self.spec.weights or ()
        varies = self._streams.distinct or any(weight != int(weight) for weight in weights)
        varies = varies or bool(self.spec.samples)
        if not varies or not self._streams.generates:
            return epoch * batches
        self._batches[epoch] = batches
        for earlier in range(epoch):
            if earlier not in self._batches:
                self.epoch(earlier)
        return sum(self._batches[earlier] for earlier in range(epoch))

    def _largest_first(self, parts: list[np.ndarray], epoch: int) -> None:
        """Move the part with the largest group to the front of the first epoch, so that a run that does not fit fails early."""
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
        texts = np.array(
            [self._drawn(int(group), size, generator) for group in groups], np.int64
        )  # [Q, 1 + size]
        return self._batch_of(texts.reshape(-1, 1 + size), examples)

    def _batch_of(self, texts: np.ndarray, examples: Sequence[int] | np.ndarray) -> GritBatch:
        """The batch of these texts, int[Q, 1 + group], and of these examples to generate."""
        ids = [int(example) for example in examples]
        ids.sort(key=lambda example: -int(self.lengths[example]))
        return GritBatch(self._split, texts, ids, self._with_text, self._streams.first)

    def _drawn(self, group: int, size: int, generator: np.random.Generator | None) -> list[int]:
        """A query, one positive and `size - 1` negatives. Negatives repeat if there are too few.

        Without negatives of its own, a query gets passages of other rows of its dataset or source. generator: draws them at random; None
        takes the first ones.
        """
        start, end = int(self._starts[group]), int(self._ends[group])
        passages = np.arange(start + 1, end)
        is_positive = self._split.is_positive[start + 1 : end]
        positives, negatives = passages[is_positive], passages[~is_positive]
        if generator is not None:
            positives = positives[generator.permutation(len(positives))]
            negatives = negatives[generator.permutation(len(negatives))]
        if size > 1 and not len(negatives):
            negatives = self._others.draw(group, size - 1, generator)
        return [start, int(positives[0]), *(int(negatives[at % len(negatives)]) for at in range(size - 1))]

    def _examples_of(self, step: int) -> np.ndarray:
        """int[examples]: the examples to generate in a step, taken in order from an endless stream of shuffled rounds.

        step: counted from the first step with these data.
        """
        size = self._streams.examples
        if not len(self._round(0)):
            raise empty_epoch()
        examples: list[int] = []
        at = step * size
        while len(examples) < size:
            round_, begin = divmod(at, len(self._round(0)))
            part = self._round(round_)[begin : begin + size - len(examples)]
            examples += [int(example) for example in part]
            at += len(part)
        return np.array(examples)

    def _make_round(self, number: int) -> np.ndarray:
        """The examples to generate in the order of one round, repeated by the weights of their sources."""
        generator = np.random.default_rng([self.spec.seed, number, 1])
        order = self._draw(generator)
        order = order[~self._texts[order]]
        order = order[generator.permutation(len(order))]
        if number == 0 and len(order):  # as with texts: a run that does not fit fails early
            longest = int(np.argmax(self._sizes[order]))
            order[0], order[longest] = order[longest], order[0]
        return self._starts[order]


def _cut(groups: np.ndarray, size: int) -> list[np.ndarray]:
    """Split into as few parts of at most `size` groups as possible, of nearly equal size.

    A small last batch would have few in-batch negatives.
    """
    return np.array_split(groups, -(-len(groups) // size)) if len(groups) else []


def text_facts(batches: Batches, evaluation: Batches) -> dict[str, int]:
    """Facts for the plan about texts to embed: their maximum number per step, and the longest in tokens.

    DataError when the rows do not fit the method's mode.
    """
    assert isinstance(batches, GritBatches)
    assert isinstance(evaluation, GritBatches)
    batches.check(evaluation)
    steps = [*batches.epoch(0), *evaluation.evaluation()]
    texts = [step.texts for step in steps if isinstance(step, GritBatch)]
    return {
        "texts_per_batch": max([*texts, batches.distinct_texts()]),
        "longest_text": max(batches.longest_text(), evaluation.longest_text()),
    }
