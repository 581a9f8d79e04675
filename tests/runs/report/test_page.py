"""The report page is complete, escaped, and a single file."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tailor.runs.lock import lock
from tailor.runs.log import MetricsLog, read
from tailor.runs.report import page as report
from tailor.runs.report import plots
from tailor.runs.status import Status
from tailor.store import Store
from tailor.store.publication import Publication
from tests.helpers.run_folders import make_run, train_record

HOSTILE = "<script>alert('x')</script> & \"more\""


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = make_run(str(tmp_path / "run"))
    for when, answer in (("before", "nonsense"), ("after", "red")):
        line = {"prompt": HOSTILE, "reference": "red", "answer": answer, "exact": answer == "red"}
        store.write_text(f"evaluation/{when}.jsonl", json.dumps(line) + "\n")
    loss = {"count": 2, "first": [["rows.jsonl:7", HOSTILE]]}
    source = {
        "path": HOSTILE,
        "format": "messages",
        "rows": 12,
        "kept": 10,
        "unreadable": {"bad_json": loss},
        "dropped": {},
        "truncated": 1,
        "chunked": 0,
        "tokens": 1234,
        "supervised_tokens": 567,
        "lengths": {"p50": 20, "max": 99},
    }
    store.write_json("data.json", {"tokens": "…", "template": "chatml", "sources": [source]})
    return store


def test_the_page_needs_no_other_file_and_runs_nothing(run: Store) -> None:
    report.write(run)
    page = run.read_text("report.html")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "http" not in re.sub(r'xmlns(:xlink)?="http[^"]*"', "", page)
    assert page.count("<svg ") == 4


def test_the_page_describes_the_run(run: Store) -> None:
    report.write(run)
    page = run.read_text("report.html")
    told = (
        "3.9689",
        "0.7500",
        "90.0%",
        "LoRA of rank 8 on a base model in nf4",
        "nonsense",
        "1,234",
        "2 bad json: rows.jsonl:7",
    )
    assert [text for text in told if text not in page] == []


def test_plots_are_also_written_as_png(run: Store) -> None:
    report.write(run)
    pictures = [name for name in run.names() if name.endswith(".png")]
    assert pictures == ["grad_norm.png", "learning_rate.png", "loss.png", "tokens_per_second.png"]
    assert all(run.read_bytes(name).startswith(b"\x89PNG") for name in pictures)


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_with_fewer_than_two_steps_has_a_page_without_curves(tmp_path: Path, step: int) -> None:
    store = make_run(str(tmp_path / "run"), state="failed", step=step)
    report.write(store)
    page = store.read_text("report.html")
    assert "the loss is nan" in page
    assert "data:image" not in page
    assert "<svg" not in page


def test_points_show_their_values_where_they_are_drawn() -> None:
    """Every point of the evaluation has its value at its mark; of a long curve at most 300 points, and the last one."""
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "loss": 5 / step} for step in range(1, 1001)
    ]
    held_out = [{"kind": "evaluation", "step": step, "loss": 6 / step} for step in (1, 250, 1000)]
    (plot,) = plots.draw([*records, *held_out])
    root = ElementTree.fromstring(plot.svg(4.6, 2.8))
    space = {"s": "http://www.w3.org/2000/svg"}
    training, evaluation = root.findall("s:g[@class='points']", space)
    marks = [
        (float(use.get("x", 0)), float(use.get("y", 0)))
        for use in root.iter(f"{{{space['s']}}}use")
        if plots.SECOND in use.get("style", "")
    ]
    assert len(marks) >= len(held_out)
    for circle, record in zip(evaluation, held_out, strict=True):
        assert circle[0].text == f"step {record['step']}\nevaluation loss {record['loss']:.5g}"
        at = (float(circle.get("cx", 0)), float(circle.get("cy", 0)))
        assert min(math.dist(at, mark) for mark in marks) < 0.1
    assert 200 <= len(training) <= 300
    assert str(training[-1][0].text).startswith("step 1000\n")


def figures(run: Store) -> dict[str, str]:
    return dict(report.summary(run, read(run)))


def test_a_run_that_was_killed_is_shown_with_its_last_step(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), state="running", step=18)
    status = Status.read(run)
    assert status is not None
    status.step = 1  # written every few seconds only
    status.write(run)
    assert figures(run)["State"] == "stopped, step 18 of 60"
    with lock(run):
        assert figures(run)["State"] == "running, step 18 of 60"


def test_the_best_step_is_shown_if_the_artifact_is_from_it(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"))
    run.append_text("metrics.jsonl", '{"kind":"artifact","url":"adapter","made_from":40}\n')
    assert "Artifact" not in figures(run)
    run.write_json("plan.json", {**run.read_json("plan.json"), "save": {"best": True}})
    assert figures(run)["Artifact"] == "from step 40, which has the lowest evaluation loss"


def test_the_speed_is_the_median_and_the_memory_names_its_process(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"))
    assert figures(run)["Speed"].startswith("5,000 tokens/s (median)")
    assert figures(run)["Peak memory"] == "3.0 GiB in the worker process"
    run.write_json("plan.json", {**run.read_json("plan.json"), "gpu": True})
    assert figures(run)["Peak memory"].endswith(
        "per worker; the plan estimated 2.0 GiB for model and activations"
    )


def test_losses_that_are_not_finite_leave_a_gap_and_are_reported(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    log = MetricsLog(run)
    for step in range(1, 6):
        log.write(train_record(step, loss=float("nan") if step == 5 else 1.0))
    log.close()
    assert next(plot.file for plot in plots.draw(read(run))) == "loss.png"
    assert ("Training loss", "1.0000 → not finite") in report.summary(run, read(run))


def test_retrieval_has_a_curve_and_the_top_passages(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"))
    log = MetricsLog(run, after_step=60)
    names = ("recall@1", "recall@10", "ndcg@10")
    for step, value in ((0, 0.1), (60, 0.9)):
        log.write({"kind": "retrieval", "step": step, **dict.fromkeys(names, value), "queries": 4})
    log.close()
    found = [{"id": "d1", "score": 0.5, "grade": 1, "text": HOSTILE}]
    row = {"id": "q1", "query": "a question", "relevant": {"d1": 1}}
    rows = [{**row, "models": {"tiny": {"found": found}}}, {**row, "models": {"tiny": {"found": []}}}]
    entry = {"figure": "ndcg@10", "rows": 2, "better": "higher", "differences": {}}
    entry["models"] = {"tiny": {"value": 0.5, "interval": [0.2, 0.8]}}
    results = {"models": {"tiny": {}}, "figures": [entry], "intervals": "", "failed": []}
    with Publication(run.join("evaluation"), "search") as made:
        (made.folder / "results.json").write_text(json.dumps(results))
        (made.folder / "retrieval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        (made.folder / "figures.png").write_bytes(b"")
    report.write(run)
    page = run.read_text("report.html")
    assert "Top passage of tiny" in page
    assert '<td class="right">&lt;script&gt;' in page
    assert figures(run) == figures(run) | {
        "Recall@1": "10.0% → 90.0%",
        "NDCG@10": "10.0% → 90.0%",
        "Evaluation search": "ndcg@10 50.0%",
    }
    assert run.exists("retrieval.png")
    assert not Store(str(tmp_path / "run")).exists("reward_accuracy.png"), (
        "the control: only what was measured"
    )
