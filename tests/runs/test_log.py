"""metrics.jsonl contains each step once and in order, whatever stopped the run, and is valid JSON."""

from __future__ import annotations

import errno
import json
import uuid
from pathlib import Path
from typing import IO

import pytest

from tailor.errors import StoreError
from tailor.layout import METRICS
from tailor.runs.log import MetricsLog, read, to_json
from tailor.store import Store, store
from tests.helpers.run_folders import train_record


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def write(run: Store, steps: range, after_step: int = 0) -> None:
    log = MetricsLog(run, after_step=after_step)
    for step in steps:
        log.write(train_record(step))
        if step % 5 == 0:
            log.write({"kind": "checkpoint", "step": step, "url": "…"})
    log.close()


def steps_of(run: Store) -> list[int]:
    return [record["step"] for record in read(run) if record["kind"] == "train"]


def test_a_resumed_run_has_neither_gaps_nor_repeats(run: Store) -> None:
    write(run, range(1, 9))
    write(run, range(6, 11), after_step=5)
    assert steps_of(run) == list(range(1, 11))
    assert [record["step"] for record in read(run) if record["kind"] == "checkpoint"] == [5, 10]


def test_a_resumed_run_knows_what_its_earlier_parts_have_sent(run: Store) -> None:
    """The second part was killed before it had made all steps of the first again."""
    assert MetricsLog(run).sent == {}
    write(run, range(1, 9))
    assert MetricsLog(run, after_step=5).sent == {"train": 8}
    write(run, range(6, 7), after_step=5)
    assert MetricsLog(run, after_step=5).sent == {"train": 8}
    write(run, range(6, 11), after_step=5)
    assert steps_of(run) == list(range(1, 11))
    assert MetricsLog(run, after_step=10).sent == {"train": 8}, "of steps that are not made again"


def test_control_without_the_cut_steps_repeat(run: Store) -> None:
    write(run, range(1, 9))
    write(run, range(6, 11), after_step=8)
    assert steps_of(run) != list(range(1, 11))


def test_a_run_that_starts_over_starts_a_new_log(run: Store) -> None:
    write(run, range(1, 4))
    write(run, range(1, 3))
    assert steps_of(run) == [1, 2]


def test_records_before_the_first_step_are_kept(run: Store) -> None:
    log = MetricsLog(run)
    log.write({"kind": "generation", "when": "before", "exact_match": 0.0, "count": 3})
    log.close()
    write_more = MetricsLog(run, after_step=5)
    write_more.write(train_record(6))
    write_more.close()
    assert [record["kind"] for record in read(run)] == ["generation", "train"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_valid_json(value: float) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    line = to_json({"kind": "train", "loss": value, "more": [value, {"deep": value}]})
    assert json.loads(line, parse_constant=refuse) == {
        "kind": "train",
        "loss": None,
        "more": [None, {"deep": None}],
    }
    with pytest.raises(AssertionError):  # control: plain json writes what is no JSON
        json.loads(json.dumps({"loss": value}), parse_constant=refuse)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(Store(str(tmp_path)))
    log.write(train_record(1))
    assert (tmp_path / METRICS).read_text().count("\n") == 2, "the header and the record"


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"kind":"saved","step":1}\n{"kind":"tra')
    assert read(Store(str(tmp_path))) == [{"kind": "saved", "step": 1}]


def test_a_partial_line_after_a_full_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Store(str(tmp_path))
    log = MetricsLog(run)
    log.write(train_record(1))
    write_all = store._write_all

    def half(stream: IO[bytes], content: bytes) -> None:
        write_all(stream, content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_all", half)
        with pytest.raises(StoreError, match="no space left on the device"):
            log.write(train_record(2))
    log.close()  # there is room again
    assert steps_of(run) == [1, 2]


def test_a_line_that_is_not_a_record_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"kind":"saved","step":1}\n{"kind":"tra\n{"kind":"saved","step":2}\n')
    with pytest.raises(
        StoreError, match=r"metrics\.jsonl:2: the line is damaged: it is not valid JSON"
    ) as caught:
        read(Store(str(tmp_path)))
    assert caught.value.hint == "remove the line"


def test_the_lock_is_checked_once_for_each_flush() -> None:
    """On an object store, where lines wait to be written together, each time is a request."""
    asked: list[bool] = []
    run = Store(f"memory://{uuid.uuid4().hex}/run")
    log = MetricsLog(run, allowed=lambda: not asked.append(True))
    log.write(train_record(1))
    assert steps_of(run) == [], "the control: the line waits"
    for waits in (True, False):
        asked.clear()
        log.flush()
        assert (asked, steps_of(run)) == ([True], [1]), waits
    log.close()


def test_a_worker_that_outlived_its_command_writes_nothing(run: Store) -> None:
    """Not even when all of its lines are in the log: a checkpoint is committed after `flush`."""
    mine = True
    log = MetricsLog(run, allowed=lambda: mine)
    log.write(train_record(1))
    log.flush()
    mine = False
    with pytest.raises(StoreError, match="another process has taken over the run"):
        log.flush()
    with pytest.raises(StoreError, match="another process has taken over the run"):
        MetricsLog(run, allowed=lambda: mine)
    assert steps_of(run) == [1]
