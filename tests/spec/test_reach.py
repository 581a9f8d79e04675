"""Every file that a recipe can name is known to the check of what other machines see."""

from __future__ import annotations

from typing import Any

from tailor.spec import reach
from tailor.spec.recipe import Recipe

TASKS: list[dict[str, Any]] = [
    {"name": "facts", "data": {"path": "facts.jsonl"}},
    {"name": "retrieval", "data": {"path": "beir"}},
    {"name": "long_perplexity", "lengths": [64], "data": {"path": "texts.jsonl"}},
    {"name": "lm_eval", "tasks": ["arc_easy"], "include": "tasks"},
    {"name": "perplexity"},
]


def test_files_of_every_task_are_looked_at() -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"path": "org/base"},
            "data": {"train": [{"path": "rows.jsonl"}]},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-4},
            "save": {"to": "runs/x"},
            "evaluate": {"retrieval": {"data": {"path": "queries.jsonl"}}, "final": {"tasks": TASKS}},
        }
    )
    machines = reach.Reach("pods", "in a pod", "/job", ("/shared",), "share it", "is its own", "copy it")
    found = dict(reach.read(recipe, machines, carried=False))
    assert found.keys() == {
        "data.train.0.path",
        "evaluate.final.tasks.0.data.path",
        "evaluate.final.tasks.1.data.path",
        "evaluate.final.tasks.2.data.path",
        "evaluate.final.tasks.3.include",
        "evaluate.retrieval.data.path",
    }
