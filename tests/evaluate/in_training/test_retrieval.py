"""Retrieval during training: when it is measured, that it does not change training, and several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.data.token_store import TokenStore
from tailor.errors import DataError
from tailor.evaluate.in_training.retrieval import Probe
from tailor.onray.evaluate import evaluate
from tailor.onray.worker import probes
from tailor.plan import Plan
from tailor.spec.load import with_overrides
from tailor.train import loop
from tests.helpers.collections import pair_rows, write_jsonl
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.evaluations import Shown
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    tiny_llama(folder / "model", num_hidden_layers=1)
    make_grit_store(folder / "tokens", queries=12)
    write_jsonl(folder / "rows.jsonl", pair_rows("Represent:"))
    return folder


def plan_of(place: Path, run: str, *, searched: bool = True, **keys: Any) -> Plan:
    evaluation = {"every": 2, "retrieval": {"data": {"path": str(place / "rows.jsonl")}, **keys}}
    return make_plan(
        place / "model",
        TokenStore.open(str(place / "tokens")),
        place / run,
        model={"adapter": {**LORA, "dropout": 0.1}},
        method={
            "name": "gritlm",
            "mode": "embedding",
            "projection": 16,
            "embedding_batch_size": 6,
            "chunk_size": 8,
        },
        optim={"learning_rate": 1e-2},
        train={"steps": 4, "batch_size": None, "micro_batch_size": None},
        evaluate=evaluation if searched else {},
        save={"every": 2},
    )


def test_it_is_measured_before_training_and_at_every_evaluation(place: Path) -> None:
    """The last figures match those of the artifact; a run without retrieval has the same losses."""
    plan, host, plain = plan_of(place, "run"), PlainHost(), PlainHost()
    loop.run(plan, host, probes(plan))
    records = host.of("retrieval")
    assert [record["step"] for record in records] == [0, 2, 4]
    assert (records[0]["queries"], records[0]["passages"]) == (12, 25)
    assert records[0]["ndcg@10"] != records[2]["ndcg@10"], "the control: training moves it"
    loop.run(plan_of(place, "other", searched=False), plain)
    assert plain.losses() == host.losses()
    task = {"name": "retrieval", "data": {"path": str(place / "rows.jsonl")}}
    suite = with_overrides({"tasks": [task], "compare": "base"}, "e", [])
    outcome = evaluate(str(place / "run" / "adapter"), suite, Shown(), name="e", to=str(place / "results"))
    found = {entry["figure"]: entry["models"] for entry in outcome.results["figures"]}
    assert {name: models["adapter"]["value"] for name, models in found.items()} == pytest.approx(
        {name: records[2][name] for name in found}
    )
    assert any(models["adapter"]["value"] != models["base"]["value"] for models in found.values())


def test_a_resumed_run_measures_the_remaining_evaluations(place: Path) -> None:
    plan = plan_of(place, "resumed")
    before, after = PlainHost(stop_after=2), PlainHost(resume_from=plan.run_url)
    assert loop.run(plan, before, probes(plan)) == "stopped"
    loop.run(plan, after, probes(plan))
    steps = [[record["step"] for record in host.of("retrieval")] for host in (before, after)]
    assert steps == [[0, 2], [4]]


def _records(host: PlainHost, plan: Plan) -> list[dict[str, Any]]:
    session = loop.open_session(plan, host)
    assert plan.evaluate.retrieval is not None
    Probe(plan.evaluate.retrieval)(session, "start", 0)
    return host.of("retrieval")


def cut_rows(place: Path) -> dict[str, Any]:
    """Rows with two queries that are longer than max_length."""
    rows = pair_rows("Represent:")
    for at, row in enumerate(rows[:2]):
        row["query"][1] = f"{at} " * 300
    write_jsonl(place / "cut.jsonl", rows)
    return {"path": str(place / "cut.jsonl")}


def test_truncated_texts_are_counted_and_reported_once(place: Path) -> None:
    plan, host = plan_of(place, "cut", data=cut_rows(place)), PlainHost()
    loop.run(plan, host, probes(plan))
    assert [record["truncated"] for record in host.of("retrieval")] == [2, 2, 2]
    (said,) = [one["message"] for one in host.of("status") if "evaluate.retrieval" in one["message"]]
    assert said.startswith("evaluate.retrieval: 2 texts are longer than data.max_length (64 tokens)")
    whole = PlainHost()  # the control
    (record,) = _records(whole, plan_of(place, "whole"))
    assert record["truncated"] == 0
    assert not [one for one in whole.of("status") if "evaluate.retrieval" in one["message"]]


@pytest.mark.slow
def test_workers_share_the_texts(place: Path) -> None:
    plan = plan_of(place, "shared", data=cut_rows(place))
    first, second = run_distributed(_records, plan, world=2)
    (alone,) = _records(PlainHost(), plan)
    assert alone["truncated"] == 2
    assert (first, second) == ([pytest.approx(alone)], [])


def test_an_invalid_collection_fails_before_the_first_step(place: Path) -> None:
    plan, host = plan_of(place, "wrong", data={"path": str(place / "none.jsonl")}), PlainHost()
    with pytest.raises(DataError, match=r"evaluate\.retrieval\.data .*none\.jsonl: does not exist"):
        loop.run(plan, host, probes(plan))
    assert not host.of("train")
