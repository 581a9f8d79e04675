"""Ray Data runs the tasks of preparation with the results of this process, and brings a user's mistake home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tailor.encode import sources
from tailor.encode.prepare import prepare
from tailor.encode.tasks import Runner, in_process
from tailor.errors import DataError
from tailor.onray.prepare import SMALL_ALONE, SMALL_ON_CLUSTER, choose_runner, ray_runner, runner_by_size
from tailor.spec.data import Data
from tailor.spec.method import Sft
from tailor.spec.model import Model
from tailor.tokens import TokenStore
from tests.helpers.models import byte_tokenizer


def shards(tokens: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(tokens.url).iterdir())}


@pytest.mark.ray
def test_ray_equals_in_process(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 4000)
    model = Model(path=str(byte_tokenizer(tmp_path / "model")))
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"It is {n}."},
            ]
        }
        for n in range(300)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"Text {n} é."}) + "\n" for n in range(300))
    )
    rows = [{"path": str(tmp_path / "talks.jsonl")}, {"path": str(tmp_path / "text.jsonl")}]
    data = Data(train=rows, holdout=0.2, template="chatml")

    def made(name: str, runner: Runner) -> TokenStore:
        return prepare(data, model, Sft(name="sft"), str(tmp_path / name), runner=runner).tokens

    here, there = made("here", in_process), made("there", ray_runner)
    assert len(shards(here)) > 20
    # Bytes of every shard and of the manifest with its report.
    assert shards(there) == shards(here)

    (tmp_path / "bad.csv").write_text('text\n"a\n' + "x" * 10)
    with pytest.raises(DataError, match=r"bad.csv: none of its 1 rows can be used"):
        prepare(
            Data(train=[{"path": str(tmp_path / "bad.csv"), "format": "completion"}]),
            model,
            Sft(name="sft"),
            str(tmp_path / "t"),
            runner=ray_runner,
        )
    (tmp_path / "bad.json").write_text('{"data": [1, 2')
    with pytest.raises(DataError, match=r"bad.json is not valid JSON"):
        prepare(
            Data(train=[{"path": str(tmp_path / "bad.json"), "format": "text"}]),
            model,
            Sft(name="sft"),
            str(tmp_path / "t"),
            runner=ray_runner,
        )


def test_small_inputs_stay_here():
    assert choose_runner(SMALL_ON_CLUSTER - 1, on_cluster=True) is in_process
    assert choose_runner(SMALL_ON_CLUSTER, on_cluster=True) is ray_runner
    assert choose_runner(SMALL_ON_CLUSTER, on_cluster=False) is in_process
    assert choose_runner(SMALL_ALONE, on_cluster=False) is ray_runner
    connected = []
    runner = runner_by_size(lambda: connected.append(True), on_cluster=True)
    assert list(runner(lambda task: task, [])) == []
    assert not connected
