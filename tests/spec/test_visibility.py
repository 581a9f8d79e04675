"""The check that machines can reach a recipe's files covers every file that a recipe can name."""

from __future__ import annotations

from typing import Any

from tailor.spec import visibility
from tailor.spec.recipe import Recipe

TASKS: list[dict[str, Any]] = [
    {"name": "facts", "data": {"path": "facts.jsonl"}},
    {"name": "retrieval", "data": {"path": "beir"}},
    {"name": "long_perplexity", "lengths": [64], "data": {"path": "texts.jsonl"}},
    {"name": "lm_eval", "tasks": ["arc_easy"], "include": "tasks"},
    {"name": "metric", "function": "my.py:score"},
    {"name": "perplexity"},
]


def test_an_embedder_of_the_hub_is_reachable_everywhere() -> None:
    """A local one gets its absolute path."""
    values: dict[str, Any] = {
        "model": {"path": "org/base"},
        "data": {"train": [{"path": "/shared/rows.jsonl"}], "on_long": "retrieve"},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4},
        "save": {"to": "runs/x"},
    }
    machines = visibility.Visibility(
        "pods", "in a pod", "/shared/job", ("/shared",), "share it", "is its own", "copy it"
    )
    for name, expected in (("org/embedder", "org/embedder"), ("./embedder", "/shared/job/embedder")):
        values["data"]["retrieve"] = {"embedder": name}
        recipe = Recipe.model_validate(values)
        assert not list(visibility.check_reads(recipe, machines, bundled=False))
        retrieve = visibility.absolute(recipe, machines).data.retrieve
        assert retrieve is not None
        assert retrieve.embedder == expected


def test_files_of_every_task_are_checked() -> None:
    searched = {"evaluation": [{"path": "s3://b/q.jsonl"}], "retrieve": {"embedder": "runs/old/model"}}
    final = {"tasks": TASKS, "data": {**searched, "on_long": "retrieve"}}
    recipe = Recipe.model_validate(
        {
            "model": {"path": "org/base"},
            "data": {
                "train": [{"path": "rows.jsonl"}],
                "decontaminate": [{"path": "benchmark.jsonl"}],
                "on_long": "retrieve",
                "retrieve": {"embedder": "./embedder"},
            },
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-4},
            "save": {"to": "runs/x"},
            "evaluate": {"retrieval": {"data": {"path": "queries.jsonl"}}, "final": final},
        }
    )
    machines = visibility.Visibility(
        "pods", "in a pod", "/job", ("/shared",), "share it", "is its own", "copy it"
    )
    found = dict(visibility.check_reads(recipe, machines, bundled=False))
    assert found.keys() == {
        "data.train.0.path",
        "data.decontaminate.0.path",
        "data.retrieve.embedder",
        "evaluate.final.data.retrieve.embedder",
        "evaluate.final.tasks.0.data.path",
        "evaluate.final.tasks.1.data.path",
        "evaluate.final.tasks.2.data.path",
        "evaluate.final.tasks.3.include",
        "evaluate.final.tasks.4.function",
        "evaluate.retrieval.data.path",
    }


def test_conditions_name_the_models_by_their_absolute_paths() -> None:
    final = {
        "tasks": [{"name": "f1"}],
        "compare": ["base", "runs/old"],
        "fail_if": {"f1": "< runs/old - 0.1"},
    }
    values = {
        "model": {"path": "org/base", "adapter": {}},
        "data": {"train": [{"path": "/shared/rows.jsonl"}], "evaluation": [{"path": "/shared/e.jsonl"}]},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4},
        "save": {"to": "runs/x"},
        "evaluate": {"final": final},
    }
    machines = visibility.Visibility(
        "pods", "in a pod", "/shared/job", ("/shared",), "share it", "is its own", "copy it"
    )
    made = visibility.absolute(Recipe.model_validate(values), machines).evaluate.final
    assert made is not None
    assert made.compare == ["base", "/shared/job/runs/old"]
    assert made.fail_if == {"f1": "< /shared/job/runs/old - 0.1"}
