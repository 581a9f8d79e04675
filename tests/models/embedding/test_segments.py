"""Attention that is bidirectional in one segment: which states a changed token changes, in texts and in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.evaluate.generation import generate
from tailor.evaluate.likelihood import likelihoods, scoring_model
from tailor.evaluate.rows import Scored
from tailor.models import prefix_lm
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate, targets_of
from tailor.models.embedding.attention import text_states
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.segments import learn_rules
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.models import load_model, tiny_llama

START, LENGTHS, WINDOW = 9, (24, 13, 5), 4
"""START: tokens of the first segment of the first document; the third document has one token more than its first segment."""
STARTS = (START, 6, 4)
KINDS = ("auto", "sdpa", "eager")


def load(path: Path, attention: str) -> CausalModel:
    model = load_model(
        Model(path=str(path), attention=attention),
    )
    learn_rules(model.base)  # as the check before training does
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CausalModel]:
    path = tiny_llama(tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    return {kind: load(path, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CausalModel]:
    """One layer, so that a token beyond the window cannot be reached through another one."""
    family = FAMILIES["mistral"]
    path = family.make(tmp_path_factory.mktemp("mistral"), num_hidden_layers=1, sliding_window=WINDOW)
    return {kind: load(path, kind) for kind in KINDS}


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 250, length) for length in LENGTHS]


def text_batch(texts: Sequence[np.ndarray], layout: Any) -> Any:
    spans = [np.array([[start, len(text)]]) for start, text in zip(STARTS, texts, strict=True)]
    return lay_out_texts(list(zip(texts, spans, strict=True)), layout)


def generative_batch(texts: Sequence[np.ndarray], layout: Any) -> Any:
    """The first two documents share a row, and the third is padded."""
    made = [
        Document(ids, targets_of(ids, np.array([[start, len(ids)]])))
        for ids, start in zip(texts, STARTS, strict=True)
    ]
    return collate([made[:2], made[2:]], layout)


@torch.no_grad()
def changed_by(model: CausalModel, token: int, **how: Any) -> set[int]:
    """Positions of the first document whose states change with one of its tokens. No other document may change.

    how: of `text_states`; empty for sequences to generate, of a prefix LM.
    """

    def states(texts: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = (text_batch if how else generative_batch)(texts, model.layout)
        found = text_states(model, batch, **how) if how else model.hidden(batch)
        return found.flatten(0, 1), batch.token_document.flatten()

    texts = documents()
    before, document = states(texts)
    texts[0][token] += 1
    after, _ = states(texts)
    different = (before != after).any(-1)
    assert not different[document != 0].any()
    return set(different[document == 0].nonzero().flatten().tolist())


FIRST, REST, LAST = range(START), range(START, 24), 23


@pytest.mark.parametrize("kind", KINDS)
def test_which_states_of_a_text_a_token_changes(plain: dict[str, CausalModel], kind: str) -> None:
    """A token of the instruction, the first one of the text, and the last one. Each mode is the control of the others."""
    everything = set(range(24))
    expected = {
        "bidirectional": [everything, everything, everything],
        "causal": [set(range(4, 24)), set(REST), {LAST}],
        "bidirectional_instruction": [everything, set(REST), {LAST}],
        "bidirectional_text": [set(range(4, 24)), set(REST), set(REST)],
    }
    for attention, sets in expected.items():
        found = [changed_by(plain[kind], token, attention=attention) for token in (4, START, LAST)]
        assert found == sets, attention


@pytest.mark.parametrize("kind", KINDS)
def test_which_states_a_token_changes_through_a_window(sliding: dict[str, CausalModel], kind: str) -> None:
    """The window is the token and 3 before it where the attention is causal, and 4 on each side where it is bidirectional."""
    model = sliding[kind]
    first = {"attention": "bidirectional_instruction"}
    rest = {"attention": "bidirectional_text"}
    assert changed_by(model, 1, **first) == set(range(6))
    assert changed_by(model, 8, **first) == set(range(4, 12))
    assert changed_by(model, 20, **first) == set(range(20, 24))
    assert changed_by(model, 8, **rest) == set(range(8, 13))
    assert changed_by(model, 10, **rest) == set(range(9, 15))
    assert changed_by(model, 10, **rest, window="widen") == set(REST)
    assert changed_by(model, 1, **first, window="widen") == set(range(24))


@pytest.mark.parametrize("kind", KINDS)
def test_which_states_of_a_sequence_a_token_changes(plain: dict[str, CausalModel], kind: str) -> None:
    """Two documents are packed into a row. The control is the causal model."""
    model = plain[kind]
    prefix_lm.enable(model.base)
    try:
        assert changed_by(model, 4) == set(range(24))
        assert changed_by(model, START) == set(REST), "an answer is not in the states that predict it"
        assert changed_by(model, 20) == set(range(20, 24))
        assert changed_by(model, 4, attention="causal") == set(range(4, 24)), "texts to embed keep theirs"
        with prefix_lm.disabled(model.base):
            assert changed_by(model, 4) == set(range(4, 24))
    finally:
        setattr(model.base, prefix_lm.ATTRIBUTE, False)


def test_the_attentions_agree(plain: dict[str, CausalModel], sliding: dict[str, CausalModel]) -> None:
    """States and gradients of packed documents equal those of padded ones, and of each document alone."""
    for models in (plain, sliding):
        for attention in ("bidirectional_instruction", "bidirectional_text"):
            results = []
            for kind in KINDS:
                model = models[kind]
                batch = text_batch(documents(), model.layout)
                found = text_states(model, batch, attention=attention).flatten(0, 1)
                states = found[batch.token_document.flatten() >= 0]  # [tokens, H]
                weight = model.base.model.layers[0].self_attn.k_proj.weight
                (gradient,) = torch.autograd.grad(states.pow(3).sum(), [weight])
                results.append((states.detach(), gradient))
            for states, gradient in results[1:]:
                assert torch.allclose(results[0][0], states, atol=2e-5)
                assert torch.allclose(
                    results[0][1], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())
                )


def test_a_prefix_lm_generates_as_it_is_trained(tmp_path: Path) -> None:
    """Each generated token is the most likely one of the training forward pass over prompt and answer, and the likelihood is
    that of training. Two prompts of different lengths: one of them is padded."""
    model = load(
        tiny_llama(tmp_path), "auto"
    )  # of two layers: the last state of one layer is the same in both ways
    prompts = [ids.tolist() for ids in documents()[:2]]

    def answers(**keys: Any) -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": (), "batch_size": 2, "pad_id": 0}
        return generate(model.base, prompts, **settings, **keys)

    @torch.no_grad()
    def logits(prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = np.array(prompt + answer)
        document = Document(ids, targets_of(ids, np.array([[len(prompt), len(ids)]])))
        batch = collate([[document]], model.layout)
        return model.head(model.at_predictions(batch)[0])  # [answer, V]

    causal = answers()
    prefix_lm.enable(model.base)
    try:
        made = answers()
        assert made == answers(prefill=4), "a prompt in both directions is read at once"
        for prompt, answer in zip(prompts, made, strict=True):
            assert logits(prompt, answer).argmax(-1).tolist() == answer
        rows = [
            Scored(prompt + answer, [(len(prompt), len(prompt + answer))])
            for prompt, answer in zip(prompts, made, strict=True)
        ]
        expected = [
            float(torch.nn.functional.cross_entropy(logits(p, a), torch.tensor(a), reduction="sum"))
            for p, a in zip(prompts, made, strict=True)
        ]
        attention = model.base.config._attn_implementation
        found = [one.loss for one in likelihoods(scoring_model(model.base), rows)]
        model.base.set_attn_implementation(attention)
        assert found == pytest.approx(expected, rel=1e-5)
    finally:
        setattr(model.base, prefix_lm.ATTRIBUTE, False)
    assert made != causal, "the control: the causal model answers otherwise"
    assert any(
        logits(prompt, answer).argmax(-1).tolist() != answer
        for prompt, answer in zip(prompts, made, strict=True)
    ), "the control: under causal attention these are not the most likely tokens"
