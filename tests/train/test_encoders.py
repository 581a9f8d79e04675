"""Encoders in the loop: the loss of each way to compute it is the same, and so are the saved and exported embeddings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.artifacts import merge
from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.data.token_store import TokenStore
from tailor.encode.published_embedder import text_format
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.evaluate.retrieval.embedders import TextEmbedder
from tailor.export.forms import sentence_transformers
from tailor.models.embedding.embedder import Embedder, settings_of
from tailor.plan import Plan
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.encoders import tiny_encoder
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.plans import LORA, make_plan

METHOD = {
    "name": "gritlm",
    "mode": "embedding",
    "temperature": 0.1,
    "embedding_batch_size": 6,
    "chunk_size": 4,
}
TRAIN: dict[str, Any] = {"steps": 4, "batch_size": None, "micro_batch_size": None}
TEXTS = ["the sea", "a house", "one of many words " * 9]
Planner = Callable[..., Plan]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """Makes plans of a method's keys, and of `kind`, `adapted`, `model`, `workers` and `strategy`."""
    folder = tmp_path_factory.mktemp("encoders")
    tokens: TokenStore = make_grit_store(folder / "texts", queries=13, evaluation=0)

    def plan(place: str, kind: str = "bert", **keys: Any) -> Plan:
        base = folder / kind
        if not base.exists():
            tiny_encoder(base, kind, published=False)
        own: dict[str, Any] = {"path": str(base), **keys.pop("model", {})}
        if keys.pop("adapted", False):
            own["adapter"] = {**LORA, "dropout": 0.1}
        scale = {"workers": keys.pop("workers", 1), "strategy": keys.pop("strategy", {"name": "ddp"})}
        method, train = {**METHOD, **keys}, {**TRAIN}
        return make_plan(base, tokens, folder / place, model=own, method=method, train=train, scale=scale)

    return plan


def curve(host: PlainHost, plan: Plan) -> list[float]:
    loop.run(plan, host)
    losses = [record["embedding_loss"] for record in host.of("train")]
    host.records.clear()
    return losses


SLOWER = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("modernbert", "roberta", "mpnet")]


@pytest.mark.parametrize("kind", ["bert", *SLOWER])
def test_chunks_and_engines_give_the_same_losses(planner: Planner, kind: str) -> None:
    """Without dropout, which is drawn per chunk."""
    plain = {"kind": kind, "model": {"base_dropout": 0.0}} if kind != "modernbert" else {"kind": kind}
    whole = curve(PlainHost(), planner(f"whole-{kind}", chunk_size=64, **plain))
    assert len(whole) == 4
    for name, keys in {"gradcache": {}, "checkpoint": {"engine": "chunk_checkpoint"}}.items():
        assert curve(PlainHost(), planner(f"{name}-{kind}", **plain, **keys)) == pytest.approx(
            whole, abs=1e-5
        )
    other = curve(PlainHost(), planner(f"control-{kind}", **plain, temperature=0.11))
    assert max(abs(a - b) for a, b in zip(whole, other, strict=True)) > 1e-3, "the control"


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_what_is_saved_merged_and_exported_embeds_as_what_was_trained(
    planner: Planner, tmp_path: Path, adapted: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    plan, kept = planner(f"saved-{adapted}", "roberta", adapted=adapted), {}

    def probe(session: Session, when: str, step: int) -> None:
        if when != "evaluation":
            assert session.plan.method.embedding is not None
            format = text_format(plan.model.path)
            settings = settings_of(session.model, session.plan.method.embedding, 64, format)
            kept[when] = Embedder(session.model, load_tokenizer(plan.model.path), settings).encode(TEXTS)

    loop.run(plan, PlainHost(), [probe])
    folder = Path(plan.run_url) / ("adapter" if adapted else "model")
    assert np.abs(load_embedder(str(folder)).encode(TEXTS) - kept["end"]).max() <= 1e-6
    assert np.abs(kept["start"] - kept["end"]).max() > 1e-2, "the control: training changed them"
    if adapted:
        base, _ = TextEmbedder(str(folder))(TEXTS, None, without_adapter=True)
        assert np.abs(base - kept["start"]).max() <= 1e-6
        with pytest.raises(ModelError, match="is an encoder, which has no logits to compare"):
            merge.merge(str(folder), to=str(tmp_path / "merged"), check="logits")
        assert main(["average", str(folder), str(folder), "--to", str(tmp_path / "average")]) == 0
        assert np.abs(load_embedder(str(tmp_path / "average")).encode(TEXTS) - kept["end"]).max() <= 1e-5
        assert merge.merge(str(folder), to=str(tmp_path / "merged")).figures.check == "embeddings"
        folder = tmp_path / "merged"
        assert np.abs(load_embedder(str(folder)).encode(TEXTS) - kept["end"]).max() <= 1e-5
    shutil.copytree(folder, tmp_path / "out", ignore=shutil.ignore_patterns("COMMIT"))
    sentence_transformers.write(tmp_path / "out", query_instruction="query:")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert np.abs(model.encode(TEXTS) - kept["end"]).max() <= 1e-5
    asked = load_embedder(str(folder)).encode(TEXTS, "query:")
    assert np.abs(model.encode(TEXTS, prompt_name="query") - asked).max() <= 1e-5
    assert np.abs(asked - kept["end"]).max() > 1e-2, "the control: the prompt matters"
    again = load_embedder(str(tmp_path / "out")).encode(TEXTS)
    assert np.abs(again - kept["end"]).max() <= 1e-5, "the exported folder is an embedder here too"


CASES: dict[str, dict[str, Any]] = {
    "ddp, lora": {"adapted": True},
    "ddp, full": {},
    "ddp, modernbert": {"kind": "modernbert"},
    "ddp, chunk_checkpoint": {"engine": "chunk_checkpoint"},
    "fsdp, lora": {"strategy": {"name": "fsdp"}, "adapted": True},
    "fsdp, full": {"strategy": {"name": "fsdp"}},
    "fsdp, chunk_checkpoint": {"strategy": {"name": "fsdp"}, "engine": "chunk_checkpoint"},
    "zero-2, full": {"strategy": {"name": "deepspeed", "stage": 2}},
    "zero-3, lora": {"strategy": {"name": "deepspeed", "stage": 3}, "adapted": True},
    "zero-3, full": {"strategy": {"name": "deepspeed", "stage": 3}},
}


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[float]]:
    return {case: curve(host, plan) for case, plan in plans.items()}


@pytest.fixture(scope="module")
def distributed(planner: Planner) -> dict[str, list[float]]:
    plans = {case: planner(f"two/{case}", workers=2, **keys) for case, keys in CASES.items()}
    found: dict[str, list[float]] = run_distributed(curves, plans, world=2)[0]
    return found


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_worker_equals_two(planner: Planner, distributed: dict[str, list[float]], case: str) -> None:
    keys = {name: value for name, value in CASES[case].items() if name != "strategy"}
    assert distributed[case] == pytest.approx(curve(PlainHost(), planner(f"one/{case}", **keys)), abs=1e-5)
