"""An evaluation has the same metrics after a kill, without the prepared tokens, and on several workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import DataError
from tailor.evaluate import batches
from tailor.onray.cluster import Cluster
from tailor.store import Store
from tests.helpers.evaluations import SHORT, Joined, Shown, all_tasks, made
from tests.helpers.judges import judge_server, prefers_longer

pytestmark = pytest.mark.timeout(240)


def test_rows_are_prepared_again_if_the_tokens_are_missing(place: Path) -> None:
    values = {"tasks": [{"name": "perplexity"}], "limit": 6, "compare": "none"}
    before = made(place, values)
    (place / "runs" / "tokens").rename(place / "runs" / "gone")
    assert made(place, values).results["figures"] == before.results["figures"]


def test_a_killed_evaluation_resumes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"tasks": all_tasks(place), "limit": 9}
    expected = made(place, values, name="whole").results["figures"]
    done: list[Any] = []
    real = batches.Worker.__call__

    def dies(self: batches.Worker, job: batches.EvaluationBatch) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(job)
        return real(self, job)

    monkeypatch.setattr(batches.Worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        made(place, values, name="killed")
    unfinished = Store(str(place / "runs/tiny/evaluation/killed.unfinished"))
    assert len([name for name in unfinished.names() if name.startswith("part-")]) == 5
    assert not (place / "runs/tiny/evaluation/killed").exists()

    def counts(self: batches.Worker, job: batches.EvaluationBatch) -> Any:
        done.append(job)
        return real(self, job)

    monkeypatch.setattr(batches.Worker, "__call__", counts)
    shown = Shown()
    outcome = made(place, values, name="killed", display=shown)
    assert outcome.results["figures"] == expected
    assert len(done) == len(set(map(repr, done))), "no batch was computed twice"
    assert shown.lines[0].startswith("resuming: ")
    assert shown.progress[-1][0] == shown.progress[-1][1]


def test_other_settings_start_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of resuming: answers with another seed are not used."""
    real = batches.Worker.__call__
    calls: list[Any] = []

    def dies(self: batches.Worker, job: batches.EvaluationBatch) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(job)
        return real(self, job)

    decoding = {**SHORT["decoding"], "temperature": 1}
    values = {"tasks": [{"name": "f1"}], "limit": 9, "decoding": {**decoding, "seed": 1}}
    monkeypatch.setattr(batches.Worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        made(place, values, name="seeds")
    monkeypatch.setattr(batches.Worker, "__call__", real)
    shown = Shown()
    found = made(place, {**values, "decoding": {**decoding, "seed": 2}}, name="seeds", display=shown)
    assert "removed an unfinished evaluation with different rows, models or settings" in shown.lines[0]
    alone = made(place, {**values, "decoding": {**decoding, "seed": 2}}, name="alone")
    assert found.folder.read_text("answers.jsonl") == alone.folder.read_text("answers.jsonl")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.soak
def test_workers_change_nothing(place: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    values = {"tasks": all_tasks(place), "limit": 12}
    decoding = {**SHORT["decoding"], "temperature": 1}
    torch.set_num_threads(1)
    alone = made(place, {**values, "decoding": decoding}, name="one")
    address = ray.get_runtime_context().gcs_address
    monkeypatch.setattr("tailor.onray.sharing.clusters.BackgroundStart", Joined(cluster))
    shared = made(place, {**values, "decoding": decoding, "workers": 2}, name="two", address=address)
    assert shared.results["workers"] == 2
    assert shared.results["figures"] == alone.results["figures"]
    for file in ("answers.jsonl", "facts.jsonl", "choices.jsonl", "passages.jsonl"):
        assert shared.folder.read_text(file) == alone.folder.read_text(file)


def test_a_judge_is_asked_once(place: Path) -> None:
    """An evaluation that failed at the judge has its answers, and asks only what has no reply."""
    with judge_server() as server:
        task = {"name": "judge", "judge_model": "m", "base_url": server.url}
        values = {"tasks": [{"name": "f1"}, task], "limit": 4}
        server.reply = lambda a, b: (400, {})
        with pytest.raises(DataError, match="gave no verdict"):
            made(place, values, name="judged")
        server.reply = prefers_longer
        shown = Shown()
        outcome = made(place, values, name="judged", display=shown)
        assert any(line.startswith("resuming: 8 of 8 rows") for line in shown.lines)
        rows = [json.loads(line) for line in outcome.folder.read_text("answers.jsonl").splitlines()]
        for row in rows:
            a, b = (len(row["models"][model]["answer"]) for model in ("tiny", "base"))
            assert row["models"]["tiny"]["win_rate"] == (0.5 if a == b else float(a > b))
        assert {"f1", "win_rate"} <= {entry["figure"] for entry in outcome.results["figures"]}
        assert not (place / "runs/tiny/evaluation/judged.unfinished").exists()
        with pytest.raises(DataError, match=r"tasks\[1\]: judge needs a model to compare with"):
            made(place, values, target=str(place / "base"), to=str(place / "judged"))
