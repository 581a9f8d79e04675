"""The task mteb: MTEB calls the model as it was trained, and its scores become figures. A stand-in serves its interface."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailor.artifacts.load_embedder import load_embedder
from tailor.errors import DataError, GateError, TailorError
from tailor.evaluate import benchmarks
from tailor.onray.evaluate import Evaluated, evaluate
from tailor.spec.load import with_overrides
from tests.helpers.collections import JUDGED, QUERIES, beir_folder, embedding_model, passages
from tests.helpers.evaluations import Shown
from tests.helpers.models import tiny_llama

ASK, TELL = "Find it", "A passage"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_model(tmp_path_factory.mktemp("mteb") / "one", projection=16)


def evaluated(
    model: Path, to: Path, *tasks: str, fail_if: dict[str, str] | None = None, **keys: Any
) -> Evaluated:
    values: dict[str, Any] = {"tasks": [{"name": "mteb", "tasks": list(tasks), **keys}], "compare": "none"}
    suite = with_overrides({**values, **({"fail_if": fail_if} if fail_if else {})}, "e", [])
    return evaluate(str(model), suite, Shown(), name="e", to=str(to))


def figures(outcome: Evaluated) -> dict[str, float]:
    return {entry["figure"]: entry["models"]["one"]["value"] for entry in outcome.results["figures"]}


class StandIn(ModuleType):
    """The part of mteb that the task uses. Its one task asks for the similarity of each query with its passage."""

    __version__ = "2.0"
    texts = ("wool coat", " ", "a needle")

    def __init__(self) -> None:
        super().__init__("mteb")
        empty = SimpleNamespace(create_empty=lambda overwrites: SimpleNamespace(**overwrites))
        self.models = SimpleNamespace(ModelMeta=empty)
        self.kept: dict[str, np.ndarray] = {}
        self.fails = False

    def get_tasks(self) -> list[Any]:
        kinds = {"Pairs": ["text"], "Pictures": ["text", "image"]}
        return [
            SimpleNamespace(metadata=SimpleNamespace(name=name, modalities=kind, main_score="likeness"))
            for name, kind in kinds.items()
        ]

    def get_task(self, name: str) -> Any:
        return {one.metadata.name: one for one in self.get_tasks()}[name]

    def evaluate(self, encoder: Any, tasks: list[Any], **options: Any) -> Any:
        assert options["cache"] is None
        if self.fails:
            raise ConnectionError("no network")
        batches = [{"text": list(self.texts[:2])}, {"text": [self.texts[2]]}]
        common: dict[str, Any] = {
            "task_metadata": tasks[0].metadata,
            "hf_split": "test",
            "hf_subset": "default",
        }
        for kind in ("query", "document", None):
            named = None if kind is None else SimpleNamespace(value=kind)
            self.kept[str(kind)] = encoder.encode(iter(batches), prompt_type=named, batch_size=8, **common)
        likeness = encoder.similarity_pairwise(self.kept["query"], self.kept["document"]).numpy()
        assert np.allclose(encoder.similarity(self.kept["query"], self.kept["document"]).diagonal(), likeness)
        scores = [
            {"hf_subset": name, "main_score": float(one)}
            for name, one in zip("ab", likeness[[0, 2]], strict=True)
        ]
        return SimpleNamespace(task_results=[SimpleNamespace(scores={"test": scores})])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "mteb", made)
    monkeypatch.setattr(benchmarks, "AT_ONCE", 1)
    return made


def test_scores_are_figures(model: Path, tmp_path: Path, stand_in: StandIn) -> None:
    keys = {"query_instruction": ASK, "corpus_instruction": TELL}
    outcome = evaluated(model, tmp_path / "e", "Pairs", **keys)
    embedder = load_embedder(str(model))
    kept = [stand_in.texts[at] for at in (0, 2)]
    asked, told = embedder.encode(kept, ASK), embedder.encode(kept, TELL)
    assert np.abs(stand_in.kept["query"][[0, 2]] - asked).max() <= 1e-5
    assert np.abs(stand_in.kept["document"][[0, 2]] - told).max() <= 1e-5
    assert np.abs(stand_in.kept["None"] - stand_in.kept["query"]).max() <= 1e-5, (
        "without queries: the same instruction"
    )
    assert not stand_in.kept["query"][1].any(), "a blank text"
    expected = float((asked * told).sum(1).mean())
    assert figures(outcome) == {"Pairs/likeness": pytest.approx(expected, abs=1e-5)}
    assert len(outcome.results["mteb"]["tasks"]["Pairs"]["one"]) == 2
    own = evaluated(model, tmp_path / "own", "Pairs", **keys, instructions={"Pairs": "Another one"})
    assert abs(figures(own)["Pairs/likeness"] - expected) > 1e-3, "the control: the task's own instruction"
    cut = evaluated(model, tmp_path / "cut", "Pairs", **keys, dimension=4)
    assert stand_in.kept["query"].shape == (3, 4)
    assert figures(cut) != figures(outcome)


def test_a_bound_is_checked(model: Path, tmp_path: Path, stand_in: StandIn) -> None:
    evaluated(model, tmp_path / "e", "Pairs", fail_if={"Pairs/likeness": "< -1"}).require()
    with pytest.raises(GateError, match="Pairs/likeness"):
        evaluated(model, tmp_path / "f", "Pairs", fail_if={"Pairs/likeness": "< 1.1"}).require()


def test_what_cannot_run_is_refused(
    model: Path, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="mteb: unknown task Pears") as caught:
        evaluated(model, tmp_path / "e", "Pears")
    assert caught.value.hint == "did you mean Pairs?"
    with pytest.raises(DataError, match="Pictures is not a task of texts alone"):
        evaluated(model, tmp_path / "e", "Pictures")
    stand_in.fails = True
    with pytest.raises(DataError, match="mteb: the task Pairs failed: no network"):
        evaluated(model, tmp_path / "e", "Pairs")
    with pytest.raises(TailorError, match="is not an embedding model"):
        evaluated(tiny_llama(tmp_path / "plain"), tmp_path / "e", "Pairs")
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(TailorError, match="needs the package mteb"):
        evaluated(model, tmp_path / "e", "Pairs")


@pytest.mark.soak
def test_a_retrieval_task_of_mteb_has_the_figures_of_the_task_retrieval(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.mocks.mock_tasks.retrieval import general_args

    beir_folder(tmp_path / "beir")
    judged: dict[str, dict[str, int]] = {}
    for query, passage, grade in JUDGED:
        judged.setdefault(query, {})[passage] = grade

    class Own(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = mteb.TaskMetadata(type="Retrieval", name="Own", main_score="ndcg_at_10", **general_args)

        def load_data(self, *_: Any, **__: Any) -> None:
            queries = Dataset.from_list([{"id": name, "text": text} for name, text in QUERIES])
            corpus = Dataset.from_list(
                [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in passages()]
            )
            data = {"queries": queries, "corpus": corpus, "relevant_docs": judged, "top_ranked": None}
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    monkeypatch.setattr(mteb, "get_task", lambda name: Own())
    theirs = figures(evaluated(model, tmp_path / "e", "Own", query_instruction=ASK))
    retrieval = {"name": "retrieval", "data": {"path": str(tmp_path / "beir")}, "query_instruction": ASK}
    suite = with_overrides({"tasks": [retrieval], "compare": "none"}, "e", [])
    ours = figures(evaluate(str(model), suite, Shown(), name="r", to=str(tmp_path / "r")))
    assert theirs == {"Own/ndcg_at_10": pytest.approx(ours["ndcg@10"], abs=1e-4)}
    assert 0 < ours["ndcg@10"] < 1, "the control: nothing trivial"
