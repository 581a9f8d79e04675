"""Public suites of long contexts without lm-eval: its package and results replaced by ones of the same shape."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tailor.artifacts.load import load_run
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.evaluate import harness, harness_report, harness_tasks
from tailor.evaluate.tasks.lm_eval import LmEvalEvaluator
from tailor.spec.suite import Intervals
from tailor.spec.tasks.lm_eval import LmEval
from tests.helpers.models import byte_tokenizer, tiny_llama


def row(task: str, number: int, **metrics: Any) -> dict[str, Any]:
    shared = {"task": task, "filter": "none", "row": number, "prompt": "?", "reference": ""}
    return {"shared": shared, "own": {"answers": [""], **metrics}}


def report(task: str, rows: list[dict[str, Any]], *, is_group: bool, **reported: float) -> dict[str, Any]:
    return {
        "task": task,
        "versions": {},
        "reported": {f"{name},none": {"value": value, "lower": False} for name, value in reported.items()},
        "rows": rows,
        "cut": {},
        "is_group": is_group,
    }


RULER = [
    *(row("niah", at, **{"4096": score}) for at, score in enumerate((1.0, 0.5))),
    *(row("niah", at, **{"4096": -1.0, "8192": score}) for at, score in enumerate((0.25, 0.25), 2)),
    *(row("vt", at, **{"4096": 0.0}) for at in range(1)),
    *(row("vt", at, **{"4096": -1.0, "8192": 0.75}) for at in range(1, 2)),
]
"""Rows of two RULER tasks, of other numbers, at two lengths. -1: the row has another length."""


def test_a_task_has_a_figure_for_each_length() -> None:
    own = report("niah", RULER[:4], is_group=False, **{"4096": 0.75, "8192": 0.25, "16384": -1})
    figures = harness_report.figures(own)
    assert {name: (one.value, len(one)) for name, one in figures.items()} == {
        "niah/4096": (0.75, 2),
        "niah/8192": (0.25, 2),
    }
    assert harness_report.by_length(own) == {4096: 0.75, 8192: 0.25}
    assert harness_report.notes(own) == [], "a length without rows is no metric"
    wrong = report("niah", RULER[:4], is_group=False, **{"4096": 0.25})
    assert not harness_report.figures(wrong), "the control: what lm-eval reports is checked"
    assert "niah/4096 is 0.25; it is not a mean over rows" in harness_report.notes(wrong)[0]


def test_a_group_is_the_mean_of_its_tasks_at_every_length() -> None:
    """lm-eval reports the group's mean for 4,096 only."""
    group = report("ruler", RULER, is_group=True, **{"4096": (0.75 + 0.0) / 2})
    figures = harness_report.figures(group)
    assert {name: one.value for name, one in figures.items()} == {"ruler/4096": 0.375, "ruler/8192": 0.5}
    drawn = figures["ruler/8192"].drawn(Intervals(samples=200))
    assert ((drawn >= 0.25) & (drawn <= 0.75)).all(), (
        "a sample without one of the tasks is the mean of the others"
    )
    assert len(set(drawn.tolist())) > 1
    longbench = [*(row("a", at, score=1.0) for at in range(9)), row("b", 0, score=0.5)]
    assert (
        harness_report.figures(report("lb", longbench, is_group=True, score=0.75))["lb/score"].value == 0.75
    )
    pooled = harness_report.figures(report("lb", longbench, is_group=True, score=0.95))
    assert pooled["lb/score"].value == pytest.approx(0.95), "weighted by size"


def test_shortened_prompts_are_noted() -> None:
    own = {
        **report("x", [row("x", at, acc=1.0) for at in range(5)], is_group=False, acc=1.0),
        "cut": {"x": 2},
    }
    assert harness_report.notes(own) == [
        "lm_eval: 2 of 5 prompts of x are longer than the model's positions: lm-eval left out their start"
    ]


class Task:
    """A task of lm-eval that makes its data."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self.config = SimpleNamespace(task="niah", custom_dataset=print)
        self.settings: dict[str, Any] = {}

    @property
    def eval_docs(self) -> list[dict[str, Any]]:
        return [{"max_length": length} for length in self.metadata["max_seq_lengths"] for _ in range(5)]

    def get_config(self, key: str) -> Any:
        return self.settings.get(key)

    def set_config(self, key: str, value: Any) -> None:
        self.settings[key] = value

    def set_fewshot_seed(self, seed: int) -> None:
        pass


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A package `lm_eval` with one task of RULER's shape. Returns what it was called with."""
    called: dict[str, Any] = {}

    class TaskManager:
        all_tasks, all_subtasks, all_tags, all_groups = (
            ["niah", "longcxt", "suite"],
            ["niah"],
            ["longcxt"],
            ["suite"],
        )
        task_index = {
            "suite": SimpleNamespace(cfg={"group": "suite", "task": ["niah"]}, tags=set(), yaml_path=None),
            "niah": SimpleNamespace(cfg={"task": "niah", "custom_dataset": "f"}, tags=set(), yaml_path=None),
            "longcxt": SimpleNamespace(cfg=None, tags={"niah"}, yaml_path=None),
        }

        def __init__(self, include_path: Any, include_defaults: bool, metadata: dict[str, Any]) -> None:
            self.metadata = metadata

        def load(self, names: list[str]) -> dict[str, Any]:
            folder = Path(self.metadata["tokenizer"])
            called["metadata"] = {**self.metadata, "files": sorted(file.name for file in folder.iterdir())}
            called["config"] = json.loads((folder / "tokenizer_config.json").read_text())
            return {"tasks": {"niah": Task(self.metadata)}, "groups": {}}

    class HFLM:
        max_gen_toks = 4

        def __init__(self, *, max_length: int | None, **values: Any) -> None:
            called["max_length"] = max_length
            self.max_length = max_length or 256

        def tok_encode(self, text: str, **values: Any) -> list[int]:
            return list(text.encode())

    def evaluate(task_dict: dict[str, Any], **values: Any) -> dict[str, Any]:
        called.update(values)
        docs = task_dict["tasks"]["niah"].eval_docs
        samples = []
        for at in values["samples"]["niah"]:
            metrics = {"4096": -1.0, str(docs[at]["max_length"]): 1.0}
            samples.append(
                {
                    "doc_id": at,
                    "filter": "none",
                    "target": "7",
                    "arguments": [("x" * docs[at]["max_length"], {"max_gen_toks": 1})],
                    "filtered_resps": ["7"],
                    "metrics": list(metrics),
                    **metrics,
                }
            )
        return {
            "samples": {"niah": samples},
            "results": {"niah": {"4096,none": -1.0, "200,none": 1.0, "400,none": 1.0, "alias": "niah"}},
            "higher_is_better": {"niah": {"200": True}},
            "versions": {"niah": 1.0},
        }

    for name, content in (
        ("lm_eval", {"evaluate": evaluate, "__version__": "0"}),
        ("lm_eval.tasks", {"TaskManager": TaskManager}),
        ("lm_eval.models", {}),
        ("lm_eval.models.huggingface", {"HFLM": HFLM}),
        ("lm_eval.tasks._yaml_loader", {"load_yaml": print}),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    harness_tasks._manager.cache_clear()
    yield called
    harness_tasks._manager.cache_clear()


@pytest.fixture
def task(package: dict[str, Any]) -> LmEval:
    lengths = {"max_seq_lengths": [200, 400], "extra": "x"}
    return LmEval(name="lm_eval", tasks=["niah"], metadata=lengths, limit=2, threshold=0.5)


def test_a_run_with_data_for_each_length(task: LmEval, package: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_run(str(tiny_llama(tmp_path / "m", max_position_embeddings=256)))
    harness.check(task)
    assert "metadata" not in package, "the check makes no data, for which it has no tokenizer"
    (settings,) = harness.settings(task)
    found = harness.run(loaded, settings, 2)
    given = package["metadata"]
    assert (given["max_seq_lengths"], given["extra"]) == ([200, 400], "x")
    assert given["files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert package["max_length"] == 400, "beyond the positions"
    assert package["samples"] == {"niah": [0, 1, 5, 6]}, "two rows of each length"
    assert found["cut"] == {"niah": 2}, "400 tokens and one more"
    outcome = LmEvalEvaluator(task, "tasks[0]")
    collected = SimpleNamespace(of=lambda part: {0: found})
    made = {"m": outcome.judge(None, collected)}  # type: ignore[arg-type]
    assert [*made["m"].figures] == ["niah/200", "niah/400"]
    by_length = outcome.summary(made)["by_length"]
    assert by_length == {"niah": {"threshold": 0.5, "lengths": [200, 400], "scores": {"m": [1.0, 1.0]}}}


def test_names_that_cannot_run(task: LmEval) -> None:
    messages = {
        "niahh": r"unknown task niahh; did you mean niah\?",
        "longcxt": "longcxt is a tag of tasks, which has no metrics of its own; name its tasks: niah",
        "suite": "suite is a group of tasks, which has no metrics of its own; name its tasks: niah",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            harness.check(task.model_copy(update={"tasks": [name]}))


def test_the_tokenizer_for_tasks_has_no_code_and_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = byte_tokenizer(tmp_path / "model", bos=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **own}))
    tokenizer = load_tokenizer(str(folder))
    with harness_tasks.saved(tokenizer) as saved:
        loaded = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)  # as RULER's tasks do
        assert loaded("One text").input_ids == tokenizer.encode_prompt("One text")
    with pytest.raises(Exception, match=r"code\.py|Own"):
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)
