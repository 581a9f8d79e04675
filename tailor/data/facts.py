"""Facts about the prepared data that the plan needs: sizes and numbers of steps, computed from the actual batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tailor.data.batches import Batches, BatchSpec, empty_epoch
from tailor.data.epoch_order import is_large, order_version
from tailor.data.grit_batches import GritBatch, GritBatches, text_facts
from tailor.data.large_batches import LargeBatches
from tailor.data.ranking_batches import RankingBatches
from tailor.data.rows import Batch
from tailor.data.split import Split
from tailor.data.token_store import TokenStore
from tailor.plan import DataFacts
from tailor.plan.batches import batch_spec
from tailor.spec.recipe import Recipe


def data_facts(tokens: TokenStore, recipe: Recipe, first_step: int = 0) -> DataFacts:
    """Compute the facts. first_step: the step at which training starts to use these data, above 0 after a change of data.

    DataError when there is no training example, or when rows do not fit the method.
    """
    train, evaluation = tokens.split("train"), tokens.split("evaluation")
    spec = batch_spec(recipe, first_step)
    batches, held_out = of_split(train, spec), of_split(evaluation, spec)
    texts: dict[str, int] = {}
    if spec.streams is not None:
        texts = text_facts(batches, held_out)
    epoch = batches.epoch(0) if len(train) else []
    if not epoch:
        raise empty_epoch()
    run_tokens = None
    if recipe.train.tokens is not None:
        steps, run_tokens = batches.steps_to(recipe.train.tokens)
        steps += first_step
    else:
        steps = recipe.train.steps or first_step + batches.steps(recipe.train.epochs or 1.0)
    tokens_per_epoch, supervised = batches.epoch_tokens()
    return DataFacts(
        tokens_url=tokens.url,
        fingerprint=tokens.fingerprint,
        train_fingerprint=tokens.train_fingerprint,
        examples=len(train),
        evaluation_examples=len(evaluation),
        tokens=tokens_per_epoch,
        supervised_tokens=supervised,
        longest=batches.longest() if spec.join else max(batches.longest(), held_out.longest()),
        longest_row=max(batches.longest_row(), held_out.longest_row(evaluation=True)),
        rows_per_batch=spec.batch_size or batches.max_rows(),
        max_rows=max([batches.max_rows(), *map(len, held_out.evaluation() if spec.streams is None else [])]),
        steps_per_epoch=len(epoch),
        steps=steps,
        first_step=first_step,
        run_tokens=run_tokens,
        smaller_than_batch=smaller_than_batch(batches, epoch, spec),
        order_version=train_order(tokens, recipe),
        source_tokens=() if spec.streams else batches.source_tokens(len(recipe.data.train)),
        **texts,
    )


def train_order(tokens: TokenStore, recipe: Recipe) -> int:
    """The version of the order of the training batches, as in the facts."""
    return order_version(len(tokens.split("train")), batch_spec(recipe))


def smaller_than_batch(batches: Batches, epoch: Sequence[Batch], spec: BatchSpec) -> dict[str, int]:
    """Key of a batch size that no batch reaches -> what there is for a batch."""
    if isinstance(batches, GritBatches) and spec.streams is not None:
        found = {}
        reached = max((batch.queries for batch in epoch if isinstance(batch, GritBatch)), default=0)
        if max(reached, batches.most_queries) < spec.streams.queries:
            found["method.embedding_batch_size"] = batches.most_queries
        if batches.sequences < spec.streams.examples:
            found["method.generative_batch_size"] = batches.sequences
        return found
    if spec.batch_size and len(epoch) == 1 and len(epoch[0]) < spec.batch_size:
        return {"train.batch_size": len(epoch[0])}
    return {}


def of_split(split: Split, spec: BatchSpec) -> Batches:
    """The batches of a split."""
    if spec.streams is not None:
        return GritBatches(split, spec)
    if spec.ranked is not None:
        return RankingBatches(split, spec)
    if is_large(len(split), spec):
        lengths, supervised, source, position = (
            split.column(name) for name in ("lengths", "supervised", "source", "position")
        )
        return LargeBatches(
            lengths, supervised, source, position, spec, partial(split.blocks, spec.max_length), split.fetch
        )
    return Batches(split.lengths, split.supervised, split.source, spec, split.position)
