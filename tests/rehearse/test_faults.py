"""Planted faults: each is found before a GPU is used, by the check of its phase, with a message that names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kube.helpers import RECIPE, write
from tests.rehearse import places
from tests.rehearse.places import METHODS, SFT

Recipe = dict[str, Any]
Plant = Callable[[Path, Recipe], None]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return places.make(tmp_path)


def _rows(folder: Path, name: str, *rows: Any) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "base/tokenizer_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def wrong_column(folder: Path, recipe: Recipe) -> None:
    recipe["data"]["train"][0] |= {"format": "completion", "columns": {"prompt": "question"}}


def no_end_of_turn(folder: Path, recipe: Recipe) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    _tokenizer(folder, chat_template=template + "{% if add_generation_prompt %}assistant: {% endif %}")


def unwritable(folder: Path, recipe: Recipe) -> None:
    (folder / "full-disk").write_text("a file, not a folder")
    recipe["save"]["to"] = "full-disk/runs/one"


def wrong_qrels(folder: Path, recipe: Recipe) -> None:
    recipe.clear()
    recipe.update(copy.deepcopy(METHODS["gritlm"]))
    (folder / "beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td999\t1\n")


def too_long(folder: Path, recipe: Recipe) -> None:
    _config(folder, max_position_embeddings=32)


def no_evaluation_file(folder: Path, recipe: Recipe) -> None:
    (folder / "held.jsonl").unlink()


def gone_from_hub(folder: Path, recipe: Recipe) -> None:
    recipe["data"]["train"][0]["path"] = "hf://nobody/gone"


def metric_raises(folder: Path, recipe: Recipe) -> None:
    recipe["evaluate"]["final"]["tasks"][2]["function"] = "score.py:broken"


def drops_tools(folder: Path, recipe: Recipe) -> None:
    tool = {"type": "function", "function": {"name": "iron", "parameters": {"type": "object"}}}
    rows = [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]
    _rows(folder, "chats.jsonl", *({**row, "tools": [tool]} for row in rows))


def no_such_targets(folder: Path, recipe: Recipe) -> None:
    recipe["model"]["adapter"] = {"target_modules": ["query_key_value"]}


def small_cluster(folder: Path, recipe: Recipe) -> None:
    recipe["scale"] = {"workers": 2, "cpus_per_worker": 8}


def no_token(folder: Path, recipe: Recipe) -> None:
    recipe["export"] = {"push_to_hub": "owner/name"}


def empty_holdout(folder: Path, recipe: Recipe) -> None:
    del recipe["data"]["evaluation"]
    recipe["data"]["holdout"] = 1e-6
    recipe["evaluate"] = {}


def no_eos(folder: Path, recipe: Recipe) -> None:
    _tokenizer(folder, eos_token=None, pad_token=None)
    recipe["data"] = {"train": [{"path": "texts.jsonl"}], "max_length": 256}
    recipe["evaluate"] = {}


def nothing_to_resume(folder: Path, recipe: Recipe) -> None:
    recipe["save"]["resume"] = "runs/other"
    (folder / "runs/other").mkdir(parents=True)


def foreign_folder(folder: Path, recipe: Recipe) -> None:
    (folder / "runs/one").mkdir(parents=True)
    (folder / "runs/one/thesis.tex").write_text("mine")


def damaged_rows(folder: Path, recipe: Recipe) -> None:
    with (folder / "chats.jsonl").open("a") as stream:
        stream.write('{"messages": [\n')


def all_too_long(folder: Path, recipe: Recipe) -> None:
    recipe["data"]["max_length"] = 16


def no_question(folder: Path, recipe: Recipe) -> None:
    recipe["data"] = {"train": [{"path": "texts.jsonl"}], "holdout": 0.3, "max_length": 256}


def unknown_model(folder: Path, recipe: Recipe) -> None:
    _config(folder, model_type="unheard_of")


def other_kind_of_rows(folder: Path, recipe: Recipe) -> None:
    recipe["method"] = {"name": "dpo"}
    recipe["evaluate"] = {}


FAULTS: tuple[tuple[Plant, str, str], ...] = (
    (wrong_column, "data", "question"),
    (no_end_of_turn, "data", "the model would never learn to stop"),
    (unwritable, "storage", "full-disk"),
    (wrong_qrels, "evaluation rows", "d999"),
    (too_long, "plan", "supports 32 positions"),
    (no_evaluation_file, "recipe", "held.jsonl"),
    (gone_from_hub, "data", "hf://nobody/gone"),
    (metric_raises, "evaluate", "score.py:broken"),
    (drops_tools, "data", "tools"),
    (no_such_targets, "model", "query_key_value"),
    (small_cluster, "cluster", "needs 8 CPUs per pod"),
    (no_token, "secrets", "HF_TOKEN"),
    (empty_holdout, "data", "data.holdout: 1e-06 selects no evaluation row"),
    (no_eos, "data", "no end-of-sequence token"),
    (nothing_to_resume, "run folder", "runs/other"),
    (foreign_folder, "run folder", "thesis.tex"),
    (damaged_rows, "data", "chats.jsonl"),
    (all_too_long, "data", "too_long"),
    (no_question, "evaluation rows", "no evaluation row has a question"),
    (unknown_model, "tiny model", "no small model"),
    (other_kind_of_rows, "data", "dpo"),
)


@pytest.mark.parametrize(("plant", "check", "names"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_named(place: Path, plant: Plant, check: str, names: str) -> None:
    recipe = copy.deepcopy(SFT)
    plant(place, recipe)
    before = sorted(place.rglob("*"))
    cluster = "cluster.yaml" if check == "cluster" else None
    found = places.results(places.write(place, recipe), cluster=cluster, until=check)
    failed = {name: one.message for name, one in found.items() if one.status == "failed"}
    assert list(failed) == [check], failed
    assert names in failed[check]
    assert found[check].hint or check in ("recipe", "cluster")  # problems of keys say it in the message
    after = sorted(place.rglob("*"))
    assert [
        path for path in after if path.name != "changed.yaml" and "__pycache__" not in path.parts
    ] == before


def test_the_control_has_no_fault(place: Path) -> None:
    found = places.results("lora.yaml", until="tiny model")
    assert {name for name, one in found.items() if one.status != "ok"} == {"cluster"}
    recipe = write(place, RECIPE, "fits.yaml")
    assert places.results(str(recipe), cluster="cluster.yaml", until="cluster")["cluster"].status == "ok"
    assert not Path("runs").exists()
