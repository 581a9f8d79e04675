"""Noise on embedded tokens is that of the paper, and a pure function of the seed, the step and the document."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tailor.data.rows import join
from tailor.data.split import Split
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.models.neftune import BLOCK, Noise, NoisyDocument
from tailor.models.sequence import SequenceGroup
from tailor.spec.model import Model
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.stores import make_store

LENGTHS = [40, 11, 25]
ALPHA, WIDTH = 5.0, 64


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    path: Path = tiny_llama(tmp_path_factory.mktemp("model"))
    return load_model(
        Model(path=str(path)),
        pack=True,
    ).train()


def collator(split: Split, **options: object) -> Collator:
    return replace(Collator(split, "stream", noise_alpha=ALPHA, seed=3, step=7), **options)


def noise_of(batch: TokenBatch) -> torch.Tensor:
    """[B, T, H]"""
    assert batch.noise is not None
    drawn = batch.noise.draw(batch.input_ids.numel(), WIDTH, torch.device("cpu"))
    return drawn.view(*batch.input_ids.shape, WIDTH)


def by_document(batch: TokenBatch) -> list[torch.Tensor]:
    """[n, H] of each document of rows without packs, or of a stream."""
    noise = noise_of(batch).flatten(0, 1)
    assert batch.noise is not None
    return [noise[at : at + length] for _, at, length in batch.noise.documents]


def test_noise_is_uniform_within_the_bound_of_the_document() -> None:
    length = 3000  # three blocks
    drawn = Noise(ALPHA, 3, 7, [NoisyDocument(0, 2, length)]).draw(length + 5, WIDTH, torch.device("cpu"))
    bound = ALPHA / math.sqrt(length * WIDTH)
    assert float(drawn[:2].abs().max()) == float(drawn[-3:].abs().max()) == 0, "padding has none"
    inside = drawn[2:-3] / bound
    assert 0.999 < float(inside.abs().max()) <= 1
    assert abs(float(inside.mean())) < 0.01
    assert float(inside.var()) == pytest.approx(1 / 3, rel=0.02)
    assert not torch.equal(inside[:BLOCK], inside[BLOCK : 2 * BLOCK])


def test_a_document_has_the_same_noise_in_every_layout(split: Split) -> None:
    packed = by_document(collator(split)([(0, 1), (2,)]))
    assert [len(part) for part in packed] == LENGTHS
    for part, length in zip(packed, LENGTHS, strict=True):  # of its own length, not the row's
        assert 0.9 < float(part.abs().max()) * math.sqrt(length * WIDTH) / ALPHA <= 1
    others = {
        "other order": by_document(collator(split)([(2,), (1, 0)]))[::-1],
        "rows": by_document(collator(split, layout="rows")([(0, 1), (2,)])),
        "rows without packs": by_document(collator(split, layout="rows", packs=False)([(0, 1), (2,)])),
        "micro-batches": [by_document(collator(split)([(index,)]))[0] for index in range(3)],
    }
    for name, parts in others.items():
        assert all(map(torch.equal, parts, packed)), name
    for change in ({"step": 8}, {"seed": 4}):
        assert not torch.equal(by_document(collator(split, **change)([(0,)]))[0], packed[0])
    assert collator(split, step=None)([(0,)]).noise is None
    assert collator(split, noise_alpha=0.0)([(0,)]).noise is None


def test_workers_with_parts_of_a_stream_draw_their_parts(split: Split) -> None:
    rows = [(0, 1), (2,)]
    whole = noise_of(collator(split)(rows))
    parts = [noise_of(collator(split, sequence=SequenceGroup(rank, 4, None))(rows)) for rank in range(4)]
    assert parts[0].shape[1] < LENGTHS[0], "a document on several workers"
    assert torch.equal(torch.cat(parts, dim=1), whole)
    long = [NoisyDocument(0, 0, 2 * BLOCK + 100), NoisyDocument(1, 2 * BLOCK + 100, 50)]
    tokens, device = 2 * BLOCK + 150, torch.device("cpu")
    complete = Noise(ALPHA, 3, 7, long).draw(tokens, 8, device)
    at = BLOCK + 30
    shifted = [document._replace(start=document.start - at) for document in long]
    assert torch.equal(Noise(ALPHA, 3, 7, shifted).draw(tokens - at, 8, device), complete[at:])


def test_rows_of_joined_examples_are_documents(split: Split, model: CausalModel) -> None:
    import numpy as np

    rows = join(np.arange(3), split.lengths, 30)
    noise = by_document(collator(split)(rows))
    assert [len(part) for part in noise] == [30, 30, 15]
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(by_document(collator(split)(rows[1:2]))[0], noise[1])


def test_the_loss_is_that_of_noisy_embeddings(split: Split, model: CausalModel) -> None:
    """Against transformers' own forward pass over embeddings, one document at a time."""
    batch = collator(split)([(0, 1), (2,)])
    loss = model.training_loss(batch)[0]
    expected, control = 0.0, 0.0
    for index, noise in enumerate(by_document(batch)):
        example = split.example(index)
        ids = torch.tensor(example.input_ids, dtype=torch.int64)
        start, stop = map(int, example.spans[0])
        embedded = model.base.get_input_embeddings()(ids)[None]
        model.base.set_attn_implementation("sdpa")
        for noisy in (True, False):
            logits = model.base(inputs_embeds=embedded + noise * noisy, use_cache=False).logits[0]
            one = float(
                functional.cross_entropy(logits[start - 1 : stop - 1], ids[start:stop], reduction="sum")
            )
            expected, control = expected + one * noisy, control + one * (not noisy)
        model.base.set_attn_implementation("tailor_documents")
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert abs(expected - control) > 1e-3 * control
    assert float(model.training_loss(replace(batch, noise=None))[0]) == pytest.approx(control, rel=1e-6)
    assert not model.base.get_input_embeddings()._forward_hooks, "later passes have no noise"
