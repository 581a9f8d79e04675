"""Distillation of a teacher's scores, against NumPy and the losses of sentence-transformers, in chunks and from rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from tailor.data.split import Split
from tailor.encode.formats.passages import MAX_SCORE
from tailor.encode.prepare import prepare
from tailor.errors import DataError
from tailor.methods.contrastive import ContrastiveBatch, ContrastiveSum, contrastive_loss, share_of
from tailor.methods.gritlm import Gritlm
from tailor.models.embedding.embedder import embed
from tailor.models.embedding.layout import lay_out_texts
from tailor.spec.data import Data
from tailor.spec.methods.gritlm import Gritlm as Spec
from tailor.spec.model import Model
from tests.helpers.collections import write_jsonl
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.models import tiny_llama
from tests.helpers.passes import gradient, relative
from tests.methods.test_gritlm import batches_of, chunked, load, texts_of

QUERIES, GROUP, WIDTH = 6, 4, 8
KINDS = ("kl", "margin_mse")


def spec(**keys: Any) -> Spec:
    return Spec(name="gritlm", temperature=0.2, group_size=GROUP, **keys)


def random_batch() -> tuple[torch.Tensor, ContrastiveBatch]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(QUERIES * (1 + GROUP), WIDTH, generator=generator)
    scores = 3 * torch.randn(QUERIES, GROUP, generator=generator)
    return vectors, ContrastiveBatch(QUERIES, GROUP, torch.zeros(0, 2, dtype=torch.int64), 4, scores)


def by_numpy(vectors: np.ndarray, scores: np.ndarray, keys: Spec) -> float:
    """The distillation loss summed over the queries, by its formula in float64."""
    total, lengths = 0.0, [*keys.matryoshka, WIDTH]
    for length in lengths:
        unit = vectors[:, :length] / np.linalg.norm(vectors[:, :length], axis=1, keepdims=True)
        for query in range(QUERIES):
            own = unit[QUERIES + query * GROUP : QUERIES + (query + 1) * GROUP]
            student, teacher = own @ unit[query] / keys.temperature, scores[query]
            if keys.distillation == "kl":
                teacher = np.exp(teacher / keys.teacher_temperature)
                teacher /= teacher.sum()
                total += float(
                    (teacher * (np.log(teacher) - np.log(np.exp(student) / np.exp(student).sum()))).sum()
                )
            else:
                margins = (student[0] - student[1:]) - (teacher[0] - teacher[1:])
                total += float((margins**2).mean())
    return total / len(lengths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", [{}, {"matryoshka": [3]}, {"teacher_temperature": 0.5}], ids=str)
def test_the_loss_and_its_gradient_by_the_formula(kind: Any, keys: dict[str, Any]) -> None:
    vectors, batch = random_batch()
    assert batch.scores is not None
    own = spec(distillation=kind, contrastive_weight=0.0, distillation_weight=2.0, **keys)
    found = contrastive_loss(vectors, batch, own, range(QUERIES))
    plain, scores = vectors.double().numpy(), batch.scores.double().numpy()
    expected = by_numpy(plain, scores, own)
    assert found.distillation is not None
    assert float(found.distillation) == pytest.approx(expected, rel=1e-5)
    assert float(found.loss) == pytest.approx(2 * expected, rel=1e-5)
    for place in ((0, 0), (2, 5), (QUERIES, 1), (QUERIES + 5, 2)):  # central differences
        sides = []
        for step in (1e-5, -1e-5):
            moved = plain.copy()
            moved[place] += step
            sides.append(by_numpy(moved, scores, own))
        slope = 2 * (sides[0] - sides[1]) / 2e-5
        assert float(found.gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-4)
    parts = [contrastive_loss(vectors, batch, own, share_of(QUERIES, rank, 4)) for rank in range(4)]
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(found.loss), rel=1e-6)
    assert torch.allclose(torch.stack([part.gradient for part in parts]).sum(0), found.gradient, atol=1e-5)


def test_the_two_losses_are_added_by_their_weights() -> None:
    vectors, batch = random_batch()

    def of(scores: torch.Tensor | None, **keys: Any) -> ContrastiveSum:
        own = ContrastiveBatch(QUERIES, GROUP, batch.excluded, 4, scores)
        return contrastive_loss(vectors, own, spec(**keys), range(QUERIES))

    alone = of(None)
    taught = of(batch.scores, distillation="kl", contrastive_weight=0.0)
    both = of(batch.scores, distillation="kl", contrastive_weight=0.5, distillation_weight=3.0)
    assert float(both.loss) == pytest.approx(0.5 * float(alone.loss) + 3 * float(taught.loss), rel=1e-6)
    assert torch.allclose(both.gradient, 0.5 * alone.gradient + 3 * taught.gradient, atol=1e-5)
    assert alone.distillation is None
    assert torch.equal(both.hits, alone.hits)


@pytest.mark.parametrize(("kind", "temperature"), [("kl", 1e-6), ("margin_mse", 1.0)])
def test_the_largest_scores_give_a_finite_loss(kind: Any, temperature: float) -> None:
    """With the smallest temperature that a recipe can have. The control: larger scores do not."""
    vectors, batch = random_batch()
    for largest, is_finite in ((MAX_SCORE, True), (3e38, False)):
        scores = torch.tensor([largest, -largest, 0, largest]).expand(QUERIES, GROUP)
        own = ContrastiveBatch(QUERIES, GROUP, batch.excluded, 4, scores)
        keys = spec(distillation=kind, teacher_temperature=temperature)
        found = contrastive_loss(vectors, own, keys, range(QUERIES))
        assert bool(found.loss.isfinite()) == is_finite
        assert bool(found.gradient.isfinite().all()) == is_finite
    with pytest.raises(ValidationError):
        spec(distillation="kl", teacher_temperature=1e-7)


@pytest.mark.soak  # the import alone takes seconds
def test_the_losses_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors, batch = random_batch()
    assert batch.scores is not None
    for kind, keys in (
        ("kl", {"temperature": 0.2, "teacher_temperature": 0.5}),
        ("margin_mse", {"temperature": 1.0}),
    ):
        own = Spec(name="gritlm", group_size=GROUP, distillation=kind, contrastive_weight=0.0, **keys)  # type: ignore[arg-type]
        found = contrastive_loss(vectors, batch, own, range(QUERIES))
        leaf = vectors.clone().requires_grad_()
        unit = normalize(leaf, dim=-1)
        passages = unit[QUERIES:].reshape(QUERIES, GROUP, WIDTH)
        columns = [unit[:QUERIES], *passages.unbind(1)]
        if kind == "kl":
            theirs = losses.DistillKLDivLoss(None, temperature=0.5)
            theirs.student_temperature, theirs.teacher_temperature = 0.2, 0.5
            scale = 1 / 0.2**2  # it multiplies its loss by the square of the student's temperature
        else:
            theirs, scale = losses.MarginMSELoss(None), 1.0
        expected = scale * theirs.compute_loss_from_embeddings(columns, batch.scores)
        expected.backward()
        assert float(found.loss) / QUERIES == pytest.approx(float(expected.detach()), rel=1e-5)
        assert leaf.grad is not None
        assert torch.allclose(found.gradient / QUERIES, leaf.grad, atol=1e-5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("distillation") / "model").parent


@pytest.mark.parametrize("engine", ["gradcache", "chunk_checkpoint"])
def test_chunks_give_the_gradient_of_the_whole_batch(place: Path, engine: str) -> None:
    """And the scores are those of the passages drawn: with the scores of others, the gradient is another one."""
    split = make_grit_store(place / engine, queries=16).split("train")
    keys = {
        "mode": "embedding",
        "group_size": 3,
        "engine": engine,
        "distillation": "kl",
        "contrastive_weight": 0.0,
    }
    model = load(place / "model")
    batch = batches_of(split, 3).batch(0)
    own = Spec(name="gritlm", temperature=0.05, **keys)  # type: ignore[arg-type]
    whole = embed(model, Gritlm(own).settings, lay_out_texts(texts_of(split, batch), model.layout))
    unit = normalize(whole, dim=-1)
    passages = unit[batch.queries :].reshape(batch.queries, 3, -1)
    student = torch.einsum("qe,qge->qg", unit[: batch.queries], passages) / 0.05
    examples = batch.text_examples()[batch.queries :].reshape(-1, 3)
    teacher = torch.from_numpy(split.score)[torch.from_numpy(examples)].softmax(1)
    loss = (teacher * (teacher.log() - student.log_softmax(1))).sum(1).mean()
    loss.backward()
    expected = gradient(model)
    found, sums = chunked(model, split, keys)
    assert sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert sums["distillation_loss"] == pytest.approx(float(loss.detach()) * batch.queries, rel=1e-5)
    assert relative(found, expected) < 1e-5
    split.score = split.score[::-1].copy()
    assert relative(chunked(model, split, keys)[0], expected) > 0.01, "the control: other scores"


ROWS: dict[str, dict[str, Any]] = {
    "flagembedding": {
        "query": "q",
        "pos": ["a"],
        "neg": ["b", "c"],
        "pos_scores": [3],
        "neg_scores": [1.5, -1],
    },
    "gritlm": {"query": ["i", "q"], "pos": [["", "a"]], "neg": [["", "b"], "c"], "scores": [3.0, 1.5, -1]},
    "tevatron": {
        "query": "q",
        "positive_passages": [{"text": "a"}],
        "negative_passages": [{"text": "b"}, {"text": "c"}],
        "scores": [3, 1.5, -1],
    },
    "sentence_transformers": {
        "anchor": "q",
        "positive": "a",
        "negative_1": "b",
        "negative_2": "c",
        "label": [3, 1.5, -1],
    },
}


def prepared(
    place: Path, tmp_path: Path, rows: list[dict[str, Any]], *, columns: Any = None, **keys: Any
) -> Split:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), "columns": columns or {}}
    data = Data.model_validate({"train": [source], "max_length": 64, "template": "gritlm"})
    method = Spec(name="gritlm", mode="embedding", **keys)
    report = prepare(data, Model(path=str(place / "model")), method, str(tmp_path / "tokens"))
    return report.tokens.split("train")


@pytest.mark.parametrize("name", ROWS)
def test_scores_of_each_format_are_kept_beside_the_tokens(place: Path, tmp_path: Path, name: str) -> None:
    columns = {"scores": "label"} if name == "sentence_transformers" else None
    split = prepared(place, tmp_path, [ROWS[name]], columns=columns, distillation="kl")
    assert np.isnan(split.score[0])
    assert split.score[1:].tolist() == [3, 1.5, -1]
    changed = {
        **ROWS[name],
        **{key: [4, *ROWS[name][key][1:]] for key in ROWS[name] if key in ("pos_scores", "scores", "label")},
    }
    other = prepared(place, tmp_path, [changed], columns=columns, distillation="kl")
    assert other.score[1] == 4
    assert other.digest() != split.digest()
    plain = prepared(place, tmp_path, [ROWS[name]], columns=columns)
    assert np.isnan(plain.score).all()


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"pos_scores": None, "neg_scores": None}, "the row has no scores of a teacher"),
        ({"neg_scores": [1.0]}, "`neg_scores` has 1 numbers for 2 passages"),
        ({"neg_scores": None}, "`neg_scores` has 0 numbers for 2 passages"),
        ({"pos_scores": ["3"]}, "`pos_scores` must be a list of numbers"),
        ({"pos_scores": 3.0}, "`pos_scores` must be a list of numbers"),
        ({"pos_scores": [True]}, "`pos_scores` must be a list of numbers"),
        ({"pos_scores": [1e39]}, "`pos_scores` has a score that is not between -1e+12 and 1e+12"),
        ({"neg_scores": [0.0, -(10**400)]}, "`neg_scores` has a score that is not between -1e+12 and 1e+12"),
        ({"neg": [], "neg_scores": []}, "the row has no negatives"),
    ],
    ids=str,
)
def test_rows_without_scores_are_refused_by_name(
    place: Path, tmp_path: Path, changed: dict[str, Any], detail: str
) -> None:
    """Only with distillation: the same rows train without it."""
    rows = [ROWS["flagembedding"], {**ROWS["flagembedding"], **changed}]
    with pytest.raises(DataError) as error:
        prepared(place, tmp_path, rows, distillation="margin_mse")
    assert f"1 missing_scores: {tmp_path}/rows.jsonl:2 {detail}" in error.value.message
    assert "tailor score" in str(error.value.hint)
    assert prepared(place, tmp_path, rows).row_count == 2


def test_scores_that_nothing_uses_are_reported(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS["flagembedding"]) + "\n")
    data = Data.model_validate({"train": [{"path": str(path)}], "max_length": 64, "template": "gritlm"})
    model = Model(path=str(place / "model"))
    for keys, count in (({}, 1), ({"distillation": "kl"}, 0)):
        method = Spec(name="gritlm", mode="embedding", **keys)  # type: ignore[arg-type]
        report = prepare(data, model, method, str(tmp_path / "tokens")).tokens.manifest["report"]
        named = [text for text in report["sources"][0]["changes"] if "scores of a teacher" in text]
        assert len(named) == count
