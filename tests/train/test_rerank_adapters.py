"""Rerankers with adapters, and decoders as their bases: the trained, merged and exported scores are those of CrossEncoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.artifacts.average import average
from tailor.artifacts.consolidate import consolidate
from tailor.artifacts.load import load_run
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.merge import merge
from tailor.errors import ModelError
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.methods import load_method
from tailor.models import scoring_head
from tailor.models.collator import Collator
from tailor.plan import Plan
from tailor.store import Store
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.plans import LORA
from tests.helpers.rerankers import STEPS, Planner, make_planner, rows

LORA_ALL = {"model": {"adapter": {**LORA, "target_modules": "all-linear"}}}
SLOWER = [
    pytest.param(kind, marks=pytest.mark.soak)
    for kind in (
        *("modernbert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "camembert"),
        *("llama/bos", "llama/unpadded", "qwen3", "gemma3_text/bos", "gemma2/bos", "mistral", "opt"),
    )
]
TEXTS = [(row["query"], passage) for row in rows(5, 1) for passage in (*row["pos"], *row["neg"])]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return make_planner(tmp_path_factory.mktemp("rerank"))


@pytest.fixture(scope="module")
def adapted(planner: Planner) -> Callable[[str], Trained]:
    """The run of an adapter on a base of a kind, with its checkpoints. Tests do not write into it."""

    @cache
    def trained(kind: str) -> Trained:
        run = Trained(planner(f"adapted-{kind}", kind, **LORA_ALL, save={"every": 3, "keep": 9}))
        Store(run.plan.run_url).write_json("plan.json", run.plan.as_dict())
        return run

    return trained


class Trained:
    """A run, and its model's scores of the evaluation rows before and after training, in the order of TEXTS."""

    def __init__(self, plan: Plan, **host: Any) -> None:
        self.plan, self.host = plan, PlainHost(**host)
        self.scores: dict[str, np.ndarray] = {}
        loop.run(plan, self.host, [self._probe])

    def _probe(self, session: Any, when: str, step: int) -> None:
        split = session.tokens.split("evaluation")
        rows = [tuple(range(at, at + 4)) for at in range(0, len(TEXTS), 4)]  # a query's pairs each
        batch = load_method(session.plan.method).read(Collator(split, "rows"), rows, slice(0, len(rows)))
        with session.model.inference_mode():
            self.scores[when] = scoring_head.scores(session.model.base, batch).numpy()

    @property
    def folder(self) -> Path:
        return Path(self.plan.run_url)


def theirs(folder: Path | str) -> np.ndarray:
    """sentence-transformers' scores of TEXTS, in batches with padding."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    found: np.ndarray = model.predict(TEXTS, batch_size=8)
    return found


@pytest.mark.parametrize("kind", ["llama", "bert", *SLOWER])
def test_a_merged_adapter_has_the_scores_of_the_trained_model(
    adapted: Callable[[str], Trained], tmp_path: Path, kind: str
) -> None:
    """Also the adapter itself, with plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = adapted(kind)
    assert np.abs(run.scores["start"] - run.scores["end"]).max() > 1e-3, "the control: training changed them"
    merged = merge(run.plan.run_url, str(tmp_path / "merged"))
    assert merged.figures.check == "scores"
    assert np.abs(theirs(tmp_path / "merged") - run.scores["end"]).max() <= 1e-5
    adapter = run.folder / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(
        run.plan.model.path, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    plain = PeftModel.from_pretrained(base, str(adapter)).eval()
    queries, passages = map(list, zip(*TEXTS, strict=True))
    with torch.no_grad():
        inputs = tokenizer(queries, passages, padding=True, return_tensors="pt")
        found = plain(**inputs).logits[:, 0].numpy()
        with plain.disable_adapter():
            others = plain(**inputs).logits[:, 0].numpy()
    assert np.abs(found - run.scores["end"]).max() <= 1e-5
    assert np.abs(others - run.scores["end"]).max() > 1e-2, "the control: without the adapter, another head"
    for load in (load_run, require_embeddings):
        with pytest.raises(ModelError, match="is the adapter of a reranker"):
            load(run.plan.run_url)


@pytest.mark.parametrize("kind", ["llama", *SLOWER])
def test_a_decoder_has_the_scores_of_cross_encoder(planner: Planner, kind: str) -> None:
    run = Trained(planner(f"full-{kind}", kind))
    assert np.abs(theirs(run.folder / "model") - run.scores["end"]).max() <= 1e-5
    assert np.abs(run.scores["start"] - run.scores["end"]).max() > 1e-3, "the control: training changed them"
    (evaluation,) = (record for record in run.host.of("evaluation") if record["step"] == STEPS)
    assert 0 < evaluation["ndcg_at_10"] <= 1


def test_the_head_trains_fully_beside_the_adapter(
    planner: Planner, adapted: Callable[[str], Trained]
) -> None:
    from safetensors.torch import load_file

    run = adapted("bert")
    saved = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    own = {name for name in saved if "lora_" not in name}
    assert {name.removeprefix("base_model.model.") for name in own} == {
        f"{module}.{kind}" for module in ("classifier", "bert.pooler.dense") for kind in ("weight", "bias")
    }
    config = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["classifier", "pooler"]
    assert config["task_type"] == "SEQ_CLS"
    still = load_file(
        Trained(planner("still", "bert", **LORA_ALL, train={"steps": 1})).folder
        / "adapter"
        / "adapter_model.safetensors"
    )
    for name in own:
        assert not torch.equal(saved[name], still[name]), f"{name} did not train"


def test_an_adapter_of_the_head_alone_is_refused(planner: Planner) -> None:
    plan = planner("alone", "bert", model={"adapter": {**LORA, "target_modules": ["classifier"]}})
    with pytest.raises(ModelError, match="it has only modules of the scoring head"):
        loop.run(plan, PlainHost())


def test_a_resumed_adapter_has_the_same_losses_and_scores(
    planner: Planner, adapted: Callable[[str], Trained]
) -> None:
    whole = adapted("llama")
    plan = planner("resumed", "llama", **LORA_ALL, save={"every": 3, "keep": 9})
    stopped = PlainHost(stop_after=3)
    loop.run(plan, stopped)
    assert 3 <= len(stopped.losses()) < STEPS, "the control: it stopped"
    resumed = Trained(plan, resume_from=plan.run_url)
    assert stopped.losses() + resumed.host.losses() == pytest.approx(whole.host.losses(), abs=1e-7)
    assert np.abs(resumed.scores["end"] - whole.scores["end"]).max() <= 1e-6


@pytest.mark.parametrize("form", ["adapter", pytest.param("full", marks=pytest.mark.soak)])
def test_checkpoints_are_exported_and_averaged(
    planner: Planner, adapted: Callable[[str], Trained], tmp_path: Path, form: str
) -> None:
    """The average of one checkpoint with itself is that checkpoint; that of two lies between them."""
    if form == "adapter":
        run = adapted("bert")
    else:
        run = Trained(planner("points", "llama", save={"every": 3, "keep": 9}))
        Store(run.plan.run_url).write_json("plan.json", run.plan.as_dict())
    points = sorted((run.folder / "checkpoints").glob("step-*"))
    assert len(points) == 2
    consolidated, _ = consolidate(str(points[-1]), tmp_path / "last")
    average([str(points[-1]), str(points[-1])], str(tmp_path / "same"))
    average([str(point) for point in points], str(tmp_path / "between"))
    found = {}
    for place in ("last", "same", "between"):
        folder = tmp_path / place
        if consolidated == "adapter":
            merge(str(folder), str(tmp_path / f"{place}-merged"))
            folder = tmp_path / f"{place}-merged"
        found[place] = theirs(folder)
    assert np.abs(found["last"] - run.scores["end"]).max() <= 1e-5
    assert np.abs(found["same"] - run.scores["end"]).max() <= 1e-5
    assert np.abs(found["between"] - run.scores["end"]).max() > 1e-3, "the control: they differ"


def test_a_quantized_base_is_merged_as_in_training(planner: Planner, tmp_path: Path) -> None:
    keys = {"model": {**LORA_ALL["model"], "quantize": {"type": "nf4"}}}
    run = Trained(planner("qlora", "llama", **keys))
    assert np.abs(run.scores["start"] - run.scores["end"]).max() > 1e-3, "the control: training changed them"
    merge(run.plan.run_url, str(tmp_path / "merged"))
    assert np.abs(theirs(tmp_path / "merged") - run.scores["end"]).max() <= 1e-5
    with pytest.raises(ModelError, match="its scores differ"):
        merge(run.plan.run_url, str(tmp_path / "full"), onto="full")


def test_a_merge_with_another_head_is_refused(
    adapted: Callable[[str], Trained], tmp_path: Path, monkeypatch: Any
) -> None:
    run = adapted("llama")
    with pytest.raises(ModelError, match="is a reranker, and --verify logits compares logits"):
        merge(run.plan.run_url, str(tmp_path / "logits"), check="logits")
    monkeypatch.setattr(LoraAdapter, "merged", lambda self, module, weight, **_: weight)
    with pytest.raises(ModelError, match="its scores differ from those of base and adapter"):
        merge(run.plan.run_url, str(tmp_path / "lost"))
