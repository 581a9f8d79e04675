"""Likelihoods against a plain loop over transformers' logits, without tiles, padding or packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.evaluate import likelihood
from tailor.evaluate.likelihood import likelihoods, scoring_model
from tailor.evaluate.rows import Scored
from tailor.models.load import load_network
from tailor.spec.model import Model
from tests.helpers.models import tiny_llama

LENGTHS = (5, 31, 12, 2, 18)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        tiny_llama(tmp_path_factory.mktemp("model")), dtype=torch.float32
    )


def sequences() -> list[Scored]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 261, (length,), generator=generator).tolist() for length in LENGTHS]
    return [Scored(ids, [(0, 2), (len(ids) // 2 + 1, len(ids))]) for ids in rows]


def by_hand(network: Any, one: Scored) -> tuple[float, int, int]:
    with torch.no_grad():
        chances = network(torch.tensor([one.ids])).logits[0].log_softmax(-1)
    scored = [at for start, stop in one.spans for at in range(max(start, 1), stop)]
    loss = -sum(float(chances[at - 1, one.ids[at]]) for at in scored)
    hits = sum(int(chances[at - 1].argmax()) == one.ids[at] for at in scored)
    return loss, hits, len(scored)


def test_likelihoods_match_a_plain_loop(network: Any) -> None:
    expected = [by_hand(network, one) for one in sequences()]
    found = likelihoods(scoring_model(network), sequences())
    assert [one.loss for one in found] == pytest.approx([loss for loss, _, _ in expected], rel=1e-5)
    assert [(one.hits, one.tokens) for one in found] == [(hits, tokens) for _, hits, tokens in expected]


def test_control_a_span_off_by_one_is_detected(network: Any) -> None:
    moved = [Scored(one.ids, [(start, stop - 1) for start, stop in one.spans]) for one in sequences()]
    expected = [by_hand(network, one)[0] for one in sequences()]
    found = likelihoods(scoring_model(network), moved)
    assert [one.loss for one in found] != pytest.approx(expected, rel=1e-2)


def test_batches_hold_every_sequence_once_by_length() -> None:
    made = likelihood.batches(sequences(), 2)
    assert sorted(at for batch in made for at in batch) == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in made] == [2, 2, 1]
    assert [LENGTHS[at] for batch in made for at in batch] == sorted(LENGTHS)


def test_dynamic_rope_scores_each_sequence_on_its_own(tmp_path: Path) -> None:
    from tailor.models.collator import collate
    from tailor.models.loss import summed_cross_entropy

    base = tiny_llama(tmp_path, max_position_embeddings=8)
    spec = {"path": str(base), "rope": {"name": "dynamic", "factor": 4, "original_length": 8}}
    dynamic = load_network(Model.model_validate(spec), dtype=torch.float32, device=torch.device("cpu"))
    model = scoring_model(dynamic)
    expected = [by_hand(dynamic, one)[0] for one in sequences()]
    assert [one.loss for one in likelihoods(model, sequences())] == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        together = collate([[likelihood._document(one)] for one in sequences()], "rows")
        loss = float(summed_cross_entropy(*model.at_predictions(together)))
    assert loss != pytest.approx(sum(expected), rel=1e-3), "control: in one pass they change each other"
