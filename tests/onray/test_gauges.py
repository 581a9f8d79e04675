"""The Grafana dashboard shows what a run offers to Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tailor.onray.gauges import PREFIX, figure
from tailor.track.figures import curves
from tests.helpers.run_folders import train_record

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
EVALUATION = {"kind": "evaluation", "step": 3, "loss": 0.75, "perplexity": 2.1, "token_accuracy": 0.9}


def offered() -> set[str]:
    records = (train_record(3), EVALUATION)
    names = {figure(kind, key) for record in records for kind, key, _ in curves(record)}
    return {f"ray_{PREFIX}{name}" for name in (*names, "step", "steps")}


def shown() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_panel_asks_for_what_there_is() -> None:
    asked = {name for expression in shown() for name in re.findall(r"ray_\w+", expression)}
    assert len(asked) >= 10
    assert asked <= offered()


def test_the_figures_that_the_guide_names_are_offered() -> None:
    assert {"ray_tailor_loss", "ray_tailor_evaluation_loss", "ray_tailor_tokens_per_second"} <= offered()
    assert "ray_tailor_kind" not in offered()


def test_panels_follow_the_chosen_runs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert all('{run=~"$run"}' in expression for expression in shown())
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "run"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
