"""Storage that fails: transient errors are retried, permanent ones stop the run with instructions and without data loss."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import StoreError
from tailor.runs import lock as locking
from tailor.runs import log
from tailor.runs.status import Status
from tailor.store import COMMIT, Store, failures, publication, run_folder, store
from tailor.train.saving import Saver
from tests.helpers.curves import adapter, curve
from tests.helpers.faulty_storage import Fault, faults, run
from tests.helpers.models import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def recipe(material: Path, to: str) -> dict[str, Any]:
    return {
        "model": {"path": str(material / "model"), "adapter": {"rank": 4, "dropout": 0.1}},
        "data": {
            "train": [{"path": str(material / "rows.jsonl")}],
            "holdout": 0.2,
            "max_length": 64,
            "store": str(material / "prepared"),
        },
        "method": {"name": "sft"},
        "optim": {"learning_rate": 3e-3},
        "train": {"steps": 8, "batch_size": 2, "precision": "fp32"},
        "evaluate": {"every": 4},
        "save": {"to": to, "every": 2, "keep": 2},
    }


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and a finished run without faults."""
    folder = tmp_path_factory.mktemp("faulty")
    tiny_llama(folder / "model")
    rows = (
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i} it is"}]}
        for i in range(40)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(recipe(folder, str(folder / "undisturbed")))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "PAUSES", (0.01,) * 5)
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.01)
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def to() -> str:
    return f"faulty://{uuid.uuid4().hex}/run"


def assert_equals_undisturbed(material: Path, to: str) -> None:
    assert curve(to) == curve(str(material / "undisturbed"))
    assert adapter(to) == adapter(str(material / "undisturbed"))
    assert run_folder.checkpoints(Store(to)) == ["step-00000006", "step-00000008"]


def copies(cache: Path) -> list[Path]:
    """Local copies of checkpoints that are being uploaded."""
    return sorted(path for path in (cache / "uploads").glob("*/.tmp-step-*") if path.is_dir())


@pytest.mark.parametrize(
    ("operation", "where"),
    [
        ("write", "step-00000004/weights"),
        ("write", "step-00000004/COMMIT"),
        ("write", "metrics.jsonl"),
        ("write", "adapter/"),
        ("write", "tensorboard/"),
        ("list", "checkpoints/step-00000004"),
        ("remove", "step-00000002"),
        ("read", r"\.lock"),
    ],
)
def test_transient_errors_are_retried(
    material: Path, to: str, tmp_path: Path, operation: str, where: str
) -> None:
    fault = Fault(operation, where, lambda: OSError("try later"), times=3)
    with faults(fault):
        outcome, _ = run(recipe(material, to))
    assert fault.met > 3
    assert outcome.status.state == "finished"
    assert_equals_undisturbed(material, to)
    assert not copies(tmp_path / "cache")


@pytest.mark.parametrize(
    ("error", "tries", "reason"),
    [
        (lambda: OSError("the server is on fire"), 6, r"the server is on fire"),
        (lambda: PermissionError(errno.EACCES, "Access Denied"), 1, r"Access Denied"),
    ],
)
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "COMMIT"])
def test_a_permanent_error_ends_the_run_and_the_same_command_resumes(
    material: Path,
    to: str,
    tmp_path: Path,
    error: Callable[[], Exception],
    tries: int,
    reason: str,
    file: str,
) -> None:
    fault = Fault("write", f"step-00000004/{file}", error)
    with faults(fault), pytest.raises(StoreError) as caught:
        run(recipe(material, to))
    assert fault.met == tries
    (kept,) = copies(tmp_path / "cache")
    assert caught.value.message.startswith(
        f"the checkpoint of step 4 could not be committed: {to}/checkpoints/step-00000004/{file}: "
    )
    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert f"a complete copy is in {kept}" in caught.value.hint
    publication.verify(_beside(kept), kept.name, kept)
    status = Status.read(Store(to))
    assert status is not None
    assert (status.state, status.error) == ("failed", str(caught.value))
    assert run_folder.checkpoints(Store(to)) == ["step-00000002"]

    _, lines = run(recipe(material, to))
    assert "resuming from step 2" in lines
    assert_equals_undisturbed(material, to)
    assert not copies(tmp_path / "cache"), "the kept copy is removed"


def _beside(folder: Path) -> Store:
    return Store(folder.parent)


def test_storage_that_does_not_answer_is_not_treated_as_empty(material: Path, to: str) -> None:
    run(recipe(material, to))
    before = Store(to).join("checkpoints").names()
    with faults(Fault("list", COMMIT, lambda: OSError("no answer"))):
        for call in (
            lambda: (
                Store(to).join("checkpoints").sweep(run_folder.CHECKPOINT_NAME, run_folder.is_checkpoint_file)
            ),
            lambda: run_folder.latest_checkpoint(Store(to)),
            lambda: run({**recipe(material, to), "train": {"steps": 9, "batch_size": 2}}),
        ):
            with pytest.raises(StoreError, match="no answer"):
                call()
    assert Store(to).join("checkpoints").names() == before


@pytest.mark.parametrize("waits", [True, False])
def test_slow_uploads_block_training_and_at_most_one_copy_is_kept(
    material: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The control: without the wait, copies of checkpoints accumulate on the disk."""
    max_copies = 0

    def count() -> None:
        nonlocal max_copies
        max_copies = max(max_copies, len(copies(tmp_path / "cache")))

    if not waits:
        monkeypatch.setattr(Saver, "wait", lambda self: None)
    with faults(Fault("write", "checkpoints/step-", seconds=0.25, then=count)):
        run(recipe(material, to))
    if waits:
        assert max_copies == 1
        assert_equals_undisturbed(material, to)
    else:
        assert max_copies > 1


def test_a_checkpoint_without_its_log_lines_is_not_committed(material: Path, to: str) -> None:
    with (
        faults(Fault("write", "metrics.jsonl", lambda: PermissionError("no"), times=1e9)),
        pytest.raises(StoreError, match=r"metrics\.jsonl"),
    ):
        run(recipe(material, to))
    assert run_folder.checkpoints(Store(to)) == []
    run(recipe(material, to))
    assert_equals_undisturbed(material, to)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_when(
    monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, when: Callable[..., bool], error: Any = full
) -> None:
    """`holder.name` raises `error` at the calls for which `when` is true."""
    inner = getattr(holder, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            error()
        return inner(*arguments, **options)

    monkeypatch.setattr(holder, name, call)


def _fill(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import safetensors.torch
    from peft import PeftModel

    def failure(text: str) -> Callable[[], None]:
        def fail() -> None:
            raise RuntimeError(text)

        return fail

    step = ".tmp-step-00000004"
    if where == "weights":
        fill_when(monkeypatch, safetensors.torch, "save_file", lambda _, file: step in str(file))
    elif where == "optimizer":  # torch's message for a full disk
        failing = failure("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")
        fill_when(monkeypatch, torch, "save", lambda _, file: step in str(file), failing)
    elif where == "state":
        fill_when(
            monkeypatch, Path, "write_text", lambda file, _: step in str(file) and file.name == "state.json"
        )
    elif where == "marker":
        fill_when(monkeypatch, Path, "write_text", lambda file, _: step in str(file) and file.name == COMMIT)
    elif where == "metrics":
        _commit_at_once(monkeypatch)
        fill_when(monkeypatch, store, "_write_all", lambda _, content: b'"step":5,' in content)
    else:
        fill_when(monkeypatch, PeftModel, "save_pretrained", lambda *_: True)


def _commit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit the checkpoint of step 4 before step 5, because a commit also writes the pending lines of the log."""
    inner = Saver.save

    def save(saver: Saver, *arguments: Any) -> float:
        seconds = inner(saver, *arguments)
        saver.wait()
        return seconds

    monkeypatch.setattr(Saver, "save", save)


@pytest.mark.parametrize(
    ("where", "last"),
    [
        ("weights", 2),
        ("optimizer", 2),
        ("state", 2),
        ("marker", 2),
        ("metrics", 4),
        ("adapter", 8),
    ],
)
def test_a_full_disk_ends_the_run_and_it_resumes_from_the_last_checkpoint(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, last: int
) -> None:
    to = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        _fill(patch, where)
        with pytest.raises(StoreError) as caught:
            run(recipe(material, to))
    assert caught.value.hint is not None
    assert "space" in caught.value.hint
    assert run_folder.checkpoints(Store(to))[-1] == run_folder.checkpoint_name(last)
    assert Store(to).join("checkpoints").names() == run_folder.checkpoints(Store(to)), (
        "no incomplete checkpoint"
    )
    status = Status.read(Store(to))
    assert status is not None
    assert (status.state, status.error) == ("failed", str(caught.value))
    _, lines = run(recipe(material, to))
    assert f"resuming from step {last}" in lines
    assert_equals_undisturbed(material, to)
    assert not [name for name in os.listdir(to) if name.startswith(".tmp-")]


def test_the_first_error_is_raised_if_the_status_cannot_be_written_either(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = str(tmp_path / "run")
    _fill(monkeypatch, "metrics")
    fill_when(monkeypatch, Status, "write", lambda status, _: status.state == "failed", _store_error)
    with pytest.raises(StoreError, match=f"^{to} cannot be written: no space left on the device"):
        run(recipe(material, to))
    assert log.read(Store(to))


def _store_error() -> None:
    raise StoreError("the status could not be written")
