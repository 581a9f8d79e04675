"""Two answers that share the tokens of their prompt are trained exactly as apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.models import collator, probe
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate, targets_of
from tailor.models.documents import Documents, SharedPrefixes, TokenBatch
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.models import load_model, tiny_llama
from tests.models.test_isolation import sliding

CPU = torch.device("cpu")
LENGTHS = [(40, 12, 9), (3, 20, 31), (55, 1, 14), (0, 8, 8)]
"""Of each pair: tokens of the prompt, and of both answers."""
LOSS, GRADIENTS = 1e-6, 1e-5
"""Relative differences (L2 norms). In float64, so that nothing but a mistake differs."""


def pairs(lengths: Sequence[tuple[int, int, int]] = LENGTHS) -> list[list[Document]]:
    """One row per pair. The first token of an answer differs, all its tokens are supervised."""
    generator = np.random.default_rng(0)
    rows = []
    for prompt, *answers in lengths:
        before = generator.integers(5, 261, size=prompt)
        row = []
        for position, answer in enumerate(answers):
            own = generator.integers(5, 261, size=answer)
            own[0] = 10 + position
            ids = np.concatenate([before, own])
            row.append(Document(ids, targets_of(ids, np.array([[prompt, len(ids)]])), position == 0))
        rows.append(row)
    return rows


def load(path: Path, **options: Any) -> CausalModel:
    settings = {"activation_checkpointing": options.pop("checkpointed", False)}
    return load_model(
        Model(path=str(path), **options),
        pack=True,
        **settings,
    )


def figures(model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the documents, and the gradient of their sum with different weights."""
    model.zero_grad()
    found = model.train().log_probabilities(batch)  # [D]
    (found * torch.linspace(-1, 2, len(found))).sum().backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return found.detach(), torch.cat(gradients)


def differences(model: CausalModel, batch: TokenBatch, expected: TokenBatch) -> list[float]:
    """Relative, of log-probabilities and gradients."""
    both = zip(figures(model, batch), figures(model, expected), strict=True)
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in both]


def test_a_shared_stream_has_every_token_of_every_document_once() -> None:
    rows = pairs()
    batch = collate(rows, "stream", share_prefixes=True)
    documents = batch.documents
    assert documents is not None
    assert documents.shared is not None
    assert documents.shared_tokens == 40 + 3 + 55
    assert batch.input_ids.shape == (1, 256)  # 201 tokens; apart they are 299
    keys, bounds = documents.shared.keys, documents.shared.documents.bounds
    members = [piece for row in rows for piece in row]
    ids, positions = (tensor[0, keys] for tensor in (batch.input_ids, batch.position_ids))
    for piece, (start, stop), (_, end) in zip(members, bounds, documents.bounds, strict=False):
        assert ids[start:stop].tolist() == piece.ids.tolist()
        assert positions[start:stop].tolist() == list(range(len(piece.ids)))
        assert int(keys[stop - 1]) == end - 1  # the last tokens of a document are its own
    apart = collate(rows, "stream")
    for name in ("targets", "document", "supervised", "is_positive"):
        assert torch.equal(getattr(batch, name), getattr(apart, name)), name
    read = batch.input_ids[0, batch.predicting]
    assert torch.equal(read, apart.input_ids[0, apart.predicting])
    first, second = (int(batch.predicting[batch.document == index][0]) for index in (0, 1))
    assert first == second == 39  # both answers are predicted by the last token of the prompt


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        pytest.param(lambda pair: pair, 100, id="control"),
        pytest.param(lambda pair: [pair[0], replace(pair[0], is_positive=False)], 119, id="equal"),
        pytest.param(
            lambda pair: [pair[0], replace(pair[0], ids=pair[0].ids[:110], targets=pair[0].targets[:110])],
            109,
            id="a prefix",
        ),
        pytest.param(
            lambda pair: [replace(piece, positions=np.arange(len(piece.ids)) * 2) for piece in pair],
            0,
            id="positions that skip",
        ),
        pytest.param(
            lambda pair: [pair[0], replace(pair[1], ids=pair[1].ids + 1)], 0, id="another first token"
        ),
    ],
)
def test_what_two_documents_share(change: Callable[[list[Document]], list[Document]], shared: int) -> None:
    (pair,) = pairs([(100, 20, 30)])
    for row in ([change(pair)], [[piece] for piece in change(pair)]):
        documents = collate(row, "stream", share_prefixes=True).documents
        assert documents is not None
        assert documents.shared_tokens == shared
        assert (documents.shared is None) == (shared == 0)


def test_nothing_is_shared_where_the_stream_would_not_be_shorter() -> None:
    short = pairs([(10, 5, 5)])
    for batch in (
        collate(short, "stream", share_prefixes=True),
        collate(pairs(), "stream"),
        collate(pairs([(100, 20, 30)]), "rows", share_prefixes=True),
    ):
        assert batch.documents is None or batch.documents.shared is None


MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "full": (tiny_llama, {}),
    "lora": (tiny_llama, {"adapter": {"rank": 4, "alpha": 8}}),
    "lora, checkpointed": (tiny_llama, {"adapter": {"rank": 4, "alpha": 8}, "checkpointed": True}),
    "sliding window": (lambda folder: sliding(folder, 12), {}),
    "attention sinks": (lambda folder: FAMILIES["gpt_oss"].make(folder), {}),
    "experts": (lambda folder: FAMILIES["mixtral"].make(folder), {"adapter": {"rank": 4, "alpha": 8}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_shared_equals_apart(tmp_path: Path, name: str) -> None:
    build, options = MODELS[name]
    model = load(build(tmp_path), **options)
    assert probe.prefixes_are_shareable(model, CPU, torch.float32)
    if not any("experts" in module for module, _ in model.named_modules()):  # whose products have no float64
        model.double()
    rows = pairs()
    found = differences(model, collate(rows, "stream", share_prefixes=True), collate(rows, "stream"))
    assert found[0] <= LOSS
    assert found[1] <= GRADIENTS


def test_no_mask_is_made_for_long_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have as many numbers as products, of which the causal kernel computes half. The control: a long prompt."""
    masks: list[tuple[int, ...]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, attn_mask: torch.Tensor | None, **options: Any) -> torch.Tensor:
        if attn_mask is not None:
            masks.append(tuple(attn_mask.shape))
        return attend(*arguments, attn_mask=attn_mask, **options)

    model = load(tiny_llama(tmp_path))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for lengths, expected in (((30, 50, 40), set()), ((90, 50, 40), {(40, 130)})):
        batch = collate(pairs([lengths]), "stream", share_prefixes=True)
        assert batch.documents is not None
        assert batch.documents.shared_tokens == lengths[0]
        masks.clear()
        model.log_probabilities(batch)
        assert set(masks) == expected


def without_the_prompt(documents: Documents) -> Documents:
    """The mistake: the second answer attends to itself alone."""
    return replace(documents, shared=None)


def with_the_other_answer(documents: Documents) -> Documents:
    """The mistake: the second answer attends to the first one too."""
    bounds = list(documents.bounds)
    keys, lengths = [], []
    for index, (start, stop) in enumerate(bounds):
        start = bounds[index - 1][0] if index % 2 else start
        keys.append(torch.arange(start, stop))
        lengths.append(stop - start)
    return replace(documents, shared=SharedPrefixes(torch.cat(keys), Documents.packed(lengths, CPU)))


def without_its_first_token(documents: Documents) -> Documents:
    """The mistake: the second answer does not attend to the first token of the prompt."""
    assert documents.shared is not None
    keys, bounds = documents.shared.keys, documents.shared.documents.bounds
    parts = [keys[start + index % 2 : stop] for index, (start, stop) in enumerate(bounds)]
    lengths = [len(part) for part in parts]
    return replace(documents, shared=SharedPrefixes(torch.cat(parts), Documents.packed(lengths, CPU)))


@pytest.mark.parametrize("mistake", [without_the_prompt, with_the_other_answer])
def test_control_another_mask_differs(tmp_path: Path, mistake: Callable[[Documents], Documents]) -> None:
    model = load(tiny_llama(tmp_path)).double()
    rows = pairs()
    batch = collate(rows, "stream", share_prefixes=True)
    assert batch.documents is not None
    wrong = replace(batch, documents=mistake(batch.documents))
    found = differences(model, wrong, collate(rows, "stream"))
    assert found[0] > 1000 * LOSS
    assert found[1] > 1e-2


def test_the_probe_tells_a_mistake_from_the_rounding_of_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_llama(tmp_path))
    assert probe.prefixes_are_shareable(model, CPU, torch.bfloat16)
    for mistake in (without_the_prompt, with_the_other_answer, without_its_first_token):

        def mistaken(*arguments: Any, mistake: Any = mistake, **options: Any) -> TokenBatch:
            batch = collate(*arguments, **options)
            assert batch.documents is not None
            if batch.documents.shared is None:
                return batch
            return replace(batch, documents=mistake(batch.documents))

        monkeypatch.setattr(probe, "collate", mistaken)
        assert not probe.prefixes_are_shareable(model, CPU, torch.bfloat16), mistake


def test_models_that_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent layers, chunks, transformers' attention; the control: a token that the documents do not have in common."""
    others = {
        "recurrent": load(FAMILIES["lfm2"].make(tmp_path / "lfm2")),
        "chunks": load(FAMILIES["llama4_text"].make(tmp_path / "chunks")),
        "rows": load(tiny_llama(tmp_path / "rows"), attention="sdpa"),
    }
    for name, model in others.items():
        assert not probe.prefixes_are_shareable(model, CPU, torch.float32), name
    model = load(tiny_llama(tmp_path / "llama"))
    assert probe.prefixes_are_shareable(model, CPU, torch.float32)
    common = collator._common_prefixes
    monkeypatch.setattr(collator, "_common_prefixes", lambda members: [n + (n > 0) for n in common(members)])
    assert not probe.prefixes_are_shareable(model, CPU, torch.float32)
