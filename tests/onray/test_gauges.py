"""The Grafana dashboard uses metrics that a run exports to Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tailor.onray.gauges import PREFIX, figure
from tailor.track.figures import curves
from tests.helpers.run_folders import train_record

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
EVALUATION = {"kind": "evaluation", "step": 3, "loss": 0.75, "perplexity": 2.1, "token_accuracy": 0.9}


def exported() -> set[str]:
    records = (train_record(3), EVALUATION)
    names = {figure(kind, key) for record in records for kind, key, _ in curves(record)}
    return {f"ray_{PREFIX}{name}" for name in (*names, "step", "steps")}


def shown() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_panel_uses_exported_metrics() -> None:
    used = {name for expression in shown() for name in re.findall(r"ray_\w+", expression)}
    assert len(used) >= 10
    assert used <= exported()


def test_the_documented_metrics_are_exported() -> None:
    assert {"ray_tailor_loss", "ray_tailor_evaluation_loss", "ray_tailor_tokens_per_second"} <= exported()
    assert "ray_tailor_kind" not in exported()


def test_panels_filter_by_the_selected_runs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert all('{run=~"$run"}' in expression for expression in shown())
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "run"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
