"""Weights & Biases offline: what `wandb sync` would send, read from the file that the library wrote."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from tailor.errors import StoreError
from tailor.onray.monitor import LocalChannel
from tailor.onray.worker import Recorder, WorkerTask
from tailor.spec.track import Track
from tailor.store import Store
from tailor.track import open_trackers
from tests.helpers.run_folders import RECIPE, train_record

TRACK = Track.model_validate({"tensorboard": False, "wandb": {"project": "stitches"}})
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield
    wandb.teardown()  # it reads its environment once


def write(run: Store, steps: range, *, after_step: int = 0) -> None:
    """Into the log and to the tracker, as rank 0 does."""
    run.write_text("recipe.yaml", RECIPE.format(to=run.url))
    plan: Any = SimpleNamespace(run_url=run.url)
    task = WorkerTask(plan, TRACK, threads=1, working_folder="", distributed=False)
    tracker = Recorder(task, LocalChannel(lambda _: None, lambda: False), after_step=after_step)
    for step in steps:
        tracker.write(train_record(step, loss=float(step), grad_norm=float("inf")))
    tracker.write({"kind": "status", "message": "no curve"})
    tracker.write({"kind": "evaluation", "step": steps[-1], "loss": 0.5})
    tracker.close(finished=True)


def records(file: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log, in blocks of 32 KiB, behind a header of 7 bytes."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, part = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def kept(folder: Path) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """(the run's id, its history, its settings) of each offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        name, history, config = "", [], {}
        for data in records(file):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                name = record.run.run_id
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = record.history.item
                history.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
        found.append((name, history, config))
    return found


def test_curves_and_settings_are_kept_and_no_key(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    write(run, range(1, 4))
    ((_, history, config),) = kept(tmp_path / "run")
    curve = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert curve == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not any("train/grad_norm" in row for row in history), "an infinite one is a gap"
    assert [row["evaluation/loss"] for row in history if "evaluation/loss" in row] == [0.5]
    assert config["method.name"] == "sft"
    assert config["save.to"] == run.url
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not any(KEY.encode() in file.read_bytes() for file in written)


def test_a_resumed_run_is_the_same_run_and_a_restarted_one_is_new(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    write(run, range(1, 5))
    write(run, range(3, 4), after_step=2)  # killed again, before it had made all steps again
    write(run, range(3, 6), after_step=2)
    assert len({name for name, *_ in kept(tmp_path / "run")}) == 1
    parts = [history for _, history, _ in kept(tmp_path / "run")]
    steps = sorted([row["step"] for row in history if "train/loss" in row] for history in parts)
    assert steps == [[], [1, 2, 3, 4], [5]]
    write(run, range(1, 3))
    assert len({name for name, *_ in kept(tmp_path / "run")}) == 2


def test_without_a_key_the_run_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"track\.wandb: .*set WANDB_API_KEY, or set WANDB_MODE=offline"):
        open_trackers(TRACK, Store(str(tmp_path / "run")))
