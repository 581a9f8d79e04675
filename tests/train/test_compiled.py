"""`train.compile` changes no loss, and compiles a bounded number of graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.data.token_store import TokenStore
from tailor.models import compiled
from tailor.plan import Plan
from tailor.train import loop
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.preference_stores import pairs, write_groups
from tests.helpers.rerankers import make_planner
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow

ADAPTED = {"adapter": {**LORA, "dropout": 0.1}}
LENGTHS = [int(10 + (37 * i) % 50) for i in range(60)]
SOAK = pytest.mark.soak
CASES: dict[str, Any] = {
    "lora, checkpointed": ({"model": ADAPTED, "train": {"activation_checkpointing": True}}, ()),
    "dpo": ({"method": {"name": "dpo"}, "model": ADAPTED}, SOAK),
    "full, noise": ({"method": {"name": "sft", "neftune_alpha": 5.0}}, SOAK),
    "stock attention": ({"model": {"attention": "sdpa"}}, SOAK),
    "unpacked": ({"model": {"attention": "sdpa"}, "data": {"pack": False}}, SOAK),
    "qlora": ({"model": {"adapter": LORA, "quantize": {"type": "nf4"}}}, SOAK),
    "dpo, full": ({"method": {"name": "dpo"}}, SOAK),
    "pose": ({"train": {"pose": {"length": 128}}}, SOAK),
    "several kinds of layers": ({"model": {"path": "gemma3_text"}}, SOAK),
    "experts": ({"model": {"path": "mixtral"}}, SOAK),
    "rope by length": (
        {
            "model": {"rope": {"name": "dynamic", "factor": 4, "original_length": 4096}},
            "data": {"pack": False},
        },
        SOAK,
    ),
    "gritlm": (
        {
            "method": {
                "name": "gritlm",
                "embedding_batch_size": 6,
                "generative_batch_size": 3,
                "chunk_size": 4,
                "group_size": 2,
            },
            "train": {"batch_size": None, "micro_batch_size": 2},
        },
        SOAK,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("tokens")
    return {
        "sft": make_store(folder / "sft", LENGTHS, evaluation=LENGTHS[:7]),
        "dpo": write_groups(folder / "dpo", pairs(60, prompt=(40, 60)), pairs(7, seed=1, prompt=(40, 60))),
        "gritlm": make_grit_store(folder / "gritlm", queries=13, examples=7, evaluation=5),
    }


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured, and their operations run as they are: the numbers are those without compilation."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def curve(model: Path, stores: dict[str, TokenStore], run: Path, sections: dict[str, Any]) -> list[float]:
    """The losses of a recipe, whose model may be the name of a family."""
    if name := sections.get("model", {}).get("path"):
        FAMILIES[name].make(model := run / "model")
        sections = {**sections, "model": {**sections["model"], "path": str(model)}}
    tokens = stores[sections.get("method", {"name": "sft"})["name"]]
    return losses(PlainHost(), make_plan(model, tokens, run / "run", **sections))


def losses(host: PlainHost, plan: Plan) -> list[float]:
    """Losses of the steps and of the evaluation at the end."""
    loop.run(plan, host)
    found = host.losses() + [record["loss"] for record in host.of("evaluation")]
    host.records.clear()
    return found


@pytest.mark.parametrize(
    "sections", [pytest.param(sections, id=case, marks=marks) for case, (sections, marks) in CASES.items()]
)
def test_losses_are_those_without_compilation(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, sections: dict[str, Any]
) -> None:
    plain = curve(model, stores, tmp_path / "plain", sections)
    before = graphs()
    switched = {**sections, "train": {**sections.get("train", {}), "compile": True}}
    assert curve(model, stores, tmp_path / "compiled", switched) == plain
    assert before < graphs(), "the control: something was compiled"


@SOAK
@pytest.mark.parametrize("kind", ["bert", "llama/bos"])
def test_losses_of_rerankers_are_those_without_compilation(tmp_path: Path, kind: str) -> None:
    plan = make_planner(tmp_path)
    plain = losses(PlainHost(), plan("plain", kind=kind))
    assert losses(PlainHost(), plan("compiled", kind=kind, train={"compile": True})) == plain


def of_workers(host: PlainHost, plans: list[Plan]) -> list[list[float]]:
    compiled.BACKEND = "eager"
    return [losses(host, plan) for plan in plans]


@SOAK
@pytest.mark.parametrize("scale", [{}, {"sequence_parallel": 2}])
def test_losses_of_two_workers_are_those_without_compilation(
    model: Path, stores: dict[str, TokenStore], tmp_path: Path, scale: dict[str, Any]
) -> None:
    plans = [
        make_plan(
            model,
            stores["sft"],
            tmp_path / str(switched),
            model=ADAPTED,
            scale={"workers": 2, **scale},
            train={"compile": switched},
        )
        for switched in (False, True)
    ]
    plain, switched = run_distributed(of_workers, plans)[0]
    assert switched == plain
