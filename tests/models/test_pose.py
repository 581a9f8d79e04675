"""Skipped positions are those of the paper, a pure function of the seed, the step and the document, and mislead no attention."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tailor.data.rows import Row, join
from tailor.data.split import Split
from tailor.models import probe
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.models.pose import SkippedPositions
from tailor.models.sequence import SequenceGroup
from tailor.spec.model import Model
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.stores import make_store

LENGTHS = [40, 11, 25]
TARGET = 256
ROPE = {"name": "linear", "factor": 4, "original_length": TARGET // 4}
POSE = SkippedPositions(TARGET, 2, seed=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=TARGET // 4)


def load(base: Path, *, pack: bool = True, **spec: Any) -> CausalModel:
    return load_model(
        Model.model_validate({"path": str(base), "rope": ROPE, **spec}),
        pack=pack,
    ).train()


def collator(split: Split, **options: Any) -> Collator:
    return replace(Collator(split, "stream", step=7, pose=POSE), **options)


def by_document(batch: TokenBatch) -> list[list[int]]:
    """The position ids of each document, without padding."""
    found: list[list[int]] = []
    for position, row in zip(
        batch.position_ids.flatten().tolist(), batch.token_document.flatten().tolist(), strict=True
    ):
        if row >= 0:
            found += [[]] if position == 0 else []
            found[-1].append(position)
    return found


def by_hand(seed: int, step: int, number: int, tokens: int, target: int, chunks: int) -> list[int]:
    """The positions, token by token, without the code under test: bounds first, then a running sum of skips."""
    draw = np.random.default_rng(np.random.SeedSequence((seed, step, number), spawn_key=(1,)))
    chunks, begin, bias = min(chunks, tokens), 0, 0
    skips = dict.fromkeys(range(tokens), 0)
    for chunk in range(chunks - 1):
        share = (tokens + chunks - 1) // chunks
        begin += int(draw.integers(1, 1 + min(share, tokens - begin - (chunks - 1 - chunk))))
        skips[begin] = int(draw.integers(0, 1 + max(target - tokens, 0) - bias))
        bias += skips[begin]
    positions, at = [], -1
    for token in range(tokens):
        at += 1 + skips[token]
        positions.append(at)
    return positions


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_positions_start_at_0_increase_and_cover_the_target(chunks: int) -> None:
    length, reached, skipped = 48, set[int](), 0
    pose = SkippedPositions(length, chunks, seed=0)
    for number in range(400):
        tokens = 1 + number % length
        positions = pose.draw(5, number, tokens)
        steps = np.diff(positions)
        assert positions.dtype == np.int64
        assert positions[0] == 0
        assert positions[-1] < length
        assert (steps >= 1).all()
        assert (steps > 1).sum() <= min(chunks, tokens) - 1
        skipped += bool((steps > 1).any())
        reached |= set(positions.tolist())
    assert reached == set(range(length))
    assert skipped > 200, "control: plain positions have no skip"
    for tokens in (length, length + 5):  # no room
        assert pose.draw(5, 0, tokens).tolist() == list(range(tokens))


def test_the_first_of_two_chunks_is_at_most_half_and_skips_are_uniform() -> None:
    """As in the published code."""
    draws = [SkippedPositions(100, 2, 0).draw(0, number, 21) for number in range(3000)]
    skips = np.array([positions[-1] - 20 for positions in draws])
    cuts = np.array([int(np.diff(one).argmax()) + 1 for one, skip in zip(draws, skips, strict=True) if skip])
    assert (cuts.min(), cuts.max()) == (1, 11)
    assert (skips.min(), skips.max()) == (0, 79)
    assert abs(cuts.mean() - 6) < 0.2
    assert abs(skips.mean() - 39.5) < 2


def test_a_document_has_the_same_positions_in_every_layout(split: Split) -> None:
    packed = by_document(collator(split)([(0, 1), (2,)]))
    assert packed == [by_hand(3, 7, number, LENGTHS[number], TARGET, 2) for number in range(3)]
    singles: list[Row] = [(0,), (1,), (2,)]
    others = {
        "other order": by_document(collator(split)([(2,), (1, 0)]))[::-1],
        "rows": by_document(collator(split, layout="rows")(singles)),
        "micro-batches": [by_document(collator(split)([row]))[0] for row in singles],
    }
    for name, positions in others.items():
        assert positions == packed, name
    plain = [list(range(length)) for length in LENGTHS]
    for change in ({"step": 8}, {"pose": replace(POSE, seed=4)}, {"pose": replace(POSE, chunks=3)}):
        changed = by_document(collator(split, **change)(singles))
        assert changed not in (packed, plain)
    for off in ({"step": None}, {"pose": None}):  # evaluation, and the default
        batch = collator(split, **off)([(0, 1), (2,)])
        assert by_document(batch) == plain
        assert not batch.skips
    with pytest.raises(ValueError, match="new document at each skip"):
        collator(split, layout="rows")([(0, 1), (2,)])


def test_workers_with_parts_of_a_stream_have_their_parts(split: Split) -> None:
    rows: list[Row] = [(0, 1), (2,)]
    parts = [collator(split, sequence=SequenceGroup(rank, 4, None))(rows).position_ids for rank in range(4)]
    assert torch.equal(torch.cat(parts, dim=1), collator(split)(rows).position_ids)
    joined = by_document(collator(split)(list(join(np.arange(3), split.lengths, 30))))
    assert joined == [by_hand(3, 7, start, size, TARGET, 2) for start, size in ((0, 30), (30, 30), (60, 15))]


def expected_losses(model: CausalModel, split: Split, step: int) -> tuple[float, float]:
    """(with skipped, with plain positions): transformers' own loss of each document alone, by positions made by hand."""
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM(copy.deepcopy(model.base.config))
    network.load_state_dict(model.base.state_dict())
    network.set_attn_implementation("eager")
    totals = [0.0, 0.0]
    for number, length in enumerate(LENGTHS):
        example = split.example(number)
        ids = torch.tensor(example.input_ids, dtype=torch.int64)
        start, stop = map(int, example.spans[0])
        for at, positions in enumerate((by_hand(3, step, number, length, TARGET, 2), range(length))):
            logits = network(
                input_ids=ids[None],
                position_ids=torch.tensor([list(positions)]),
                attention_mask=torch.ones(1, length),
                use_cache=False,
            ).logits[0]
            totals[at] += float(
                functional.cross_entropy(
                    logits[start - 1 : stop - 1], ids[start:stop], reduction="sum"
                ).detach()
            )
    return totals[0], totals[1]


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_the_loss_is_transformers_own_with_these_positions(attention: str, split: Split, base: Path) -> None:
    model = load(base, attention=attention)
    skipped, plain = expected_losses(model, split, 7)
    assert abs(skipped - plain) > 1e-3 * plain, "control"
    rows: list[Row] = [(0, 1), (2,)] if model.layout == "stream" else [(0,), (1,), (2,)]
    batch = collator(split, layout=model.layout)(rows)
    assert model.layout == ("stream" if attention == "auto" else "rows")
    assert float(model.training_loss(batch)[0].detach()) == pytest.approx(skipped, rel=1e-6)
    off = collator(split, layout=model.layout, pose=None)(rows)
    assert float(model.training_loss(off)[0].detach()) == pytest.approx(plain, rel=1e-6)
    assert torch.equal(
        model.training_loss(off)[0], model.training_loss(Collator(split, model.layout)(rows))[0]
    )
    assert bool(probe.positions_have_effect(model, CPU))
    if model.layout == "rows":  # control: without the mask, transformers starts a document at each skip
        misled = float(model.training_loss(replace(batch, skips=False))[0])
        assert abs(misled - skipped) > 1e-3 * skipped
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                probe, "replace", lambda batch, **fields: replace(batch, **{**fields, "skips": False})
            )
            assert not bool(probe.positions_have_effect(model, CPU))


def test_a_model_whose_position_ids_have_no_effect_is_found(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    model = CausalModel(BloomForCausalLM(config).eval(), layout="rows")
    with torch.no_grad():
        assert not bool(probe.positions_have_effect(model, CPU))
