"""User files stay: tailor deletes names that it makes and files that a COMMIT lists, and nothing through a link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tailor.artifacts import output
from tailor.encode import prepare
from tailor.errors import StoreError
from tailor.evaluate.progress import ResultParts
from tailor.layout import MERGE_RECORD, TENSORBOARD
from tailor.onray import trainer
from tailor.runs.lock import lock
from tailor.store import DeletionError, Store, published
from tailor.store.publication import UPLOADING, Publication
from tailor.store.run_folder import checkpoint_name
from tailor.track.tensorboard import TensorBoard
from tailor.train.checkpoint import remove_old
from tests.helpers.stores import commit

FILES = {"state.json": b"{}", "weights.safetensors": b"1", "optimizer.pt": b"2"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A run with the checkpoints 1 to 4, and beside it what nothing may delete."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    store = Store(tmp_path / "run")
    for step in range(1, 5):
        commit(store.join("checkpoints"), checkpoint_name(step), FILES)
    return store


def tree(folder: Path) -> dict[str, str]:
    """Every file and link below a folder, with its content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes().hex()
    return found


def outside(tmp_path: Path, files: dict[str, bytes] = FILES) -> Path:
    """A folder that looks like a checkpoint and is somebody else's."""
    commit(Store(tmp_path), "theirs", files)
    return tmp_path / "theirs"


def test_retention_deletes_what_the_marker_lists(run: Store) -> None:
    assert remove_old(run, keep=1, needed=[2]) == []
    assert run.names("checkpoints") == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("what", ["link", "file", "inner link", "listed link", "link to all"])
def test_retention_keeps_a_checkpoint_that_has_more(run: Store, tmp_path: Path, what: str) -> None:
    theirs, first = outside(tmp_path), Path(run.url) / "checkpoints" / checkpoint_name(1)
    if what == "link":
        shutil.rmtree(first)
        first.symlink_to(theirs)
    elif what == "file":
        (first / "notes.txt").write_text("mine")
    elif what == "inner link":
        (first / "sub").symlink_to(theirs)
    elif what == "listed link":
        (first / "optimizer.pt").unlink()
        (first / "optimizer.pt").symlink_to(theirs / "optimizer.pt")
    else:
        (first.parent).rename(tmp_path / "disk")
        first.parent.symlink_to(tmp_path / "disk")
    before = tree(tmp_path)
    (note, *_) = remove_old(run, keep=3, needed=[])
    assert tree(tmp_path) == before
    assert note.startswith("an old checkpoint is kept: ")
    assert {"file": "notes.txt", "inner link": "sub"}.get(what, "symbolic link") in note


def test_resuming_sweeps_only_what_a_run_leaves(run: Store, tmp_path: Path) -> None:
    folder, theirs = Path(run.url) / "checkpoints", outside(tmp_path)
    mine = (
        "best-copy/model.bin",
        "notes.txt",
        "step-00000001-copy/state.json",
        "step-1/state.json",
        ".tmp-notes",
    )
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (Path(run.url) / ".tmp-drafts").mkdir()
    (Path(run.url) / ".tmp-drafts" / "a.md").write_text("mine")
    (folder / "linked").symlink_to(theirs)
    before = tree(tmp_path)
    left = (
        ".tmp-step-00000005-0123abcd/weights.safetensors",
        ".tmp-step-00000001-0123abcd-before/state.json",
        "step-00000005/state.json",
        "step-00000005/weights-00001-of-00002.safetensors",
        "step-00000005/.share-00001-0123abcd",
        ".validate_storage_marker",
    )
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left by a killed run")
    (Path(run.url) / ".spill-ab_cd012").mkdir()
    trainer.clear(run)
    run.remove_temporary()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("what", ["incomplete", "temporary link", "step link"])
def test_resuming_refuses_what_it_cannot_clear(run: Store, tmp_path: Path, what: str) -> None:
    folder, theirs = Path(run.url) / "checkpoints", outside(tmp_path, {"thesis.txt": b"mine"})
    if what == "incomplete":
        (folder / "step-00000005").mkdir()
        (folder / "step-00000005" / "thesis.txt").write_text("mine")
        (folder / "step-00000005" / "state.json").write_text("{}")
    else:
        (theirs / "COMMIT").unlink()
        name = ".tmp-step-00000005-0123abcd" if what == "temporary link" else "step-00000005"
        (folder / name).symlink_to(theirs)
    before = tree(tmp_path)
    with pytest.raises(DeletionError, match=r"thesis\.txt" if what == "incomplete" else "symbolic link"):
        trainer.clear(run)
    assert tree(tmp_path) == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: (folder / "notes.txt").write_text("mine"),
    "a hidden file": lambda folder: (folder / ".notes").write_text("mine"),
    "a file in a folder": lambda folder: (
        (folder / "sub").mkdir(),
        (folder / "sub" / "a.txt").write_text("mine"),
    ),
    "a link": lambda folder: (folder / "link").symlink_to("/etc"),
    "an edited card": lambda folder: (folder / "README.md").write_text("# mine"),
    "no marker": lambda folder: (folder / "COMMIT").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("remote", [False, True])
def test_a_result_is_replaced_only_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, remote: bool
) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    store = Store("memory://deletion/out" if remote else tmp_path)
    if remote:
        store.remove("made")
    files = {MERGE_RECORD: b"{}", "README.md": b"# card", "model.safetensors": b"1"}
    commit(store, "made", files)
    for _ in range(2):  # the control
        output.check(store.url_of("made"), MERGE_RECORD)
        commit(store, "made", files)
    if remote:
        if change in ("a link", "an edited card", "a file in a folder", "no marker"):
            return  # an object store has no links; contents are not compared there
        store.write_text("made/notes.txt", "mine")
        before = store.files("made")
    else:
        CHANGES[change](tmp_path / "made")
        before = tree(tmp_path)
    for call in (
        lambda: output.check(store.url_of("made"), MERGE_RECORD),
        lambda: output.publication(store.url_of("made"), MERGE_RECORD),
        lambda: Publication(store, "made"),
    ):
        with pytest.raises(DeletionError, match=r"would be (deleted or )?replaced") as caught:
            call()
        assert caught.value.exit_code == 2
    assert (store.files("made") if remote else tree(tmp_path)) == before


@pytest.mark.parametrize("to", ["memory://bucket", "memory://bucket/"])
def test_a_whole_bucket_is_no_result(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent would be a local folder, such as `s3:`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="has no folder above it"):
        output.publication(to, MERGE_RECORD)
    with output.publication(f"{to.rstrip('/')}/model{len(to)}", MERGE_RECORD) as made:
        (made.folder / "a").write_text("1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["full", "empty", "nowhere"])
def test_publishing_does_not_replace_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    commit(Store(tmp_path), "full", {MERGE_RECORD: b"{}"})
    (tmp_path / "out").symlink_to(tmp_path / target)
    before = tree(tmp_path)
    made = Publication(Store(tmp_path), "late")
    made._name = "out"  # the link appears while the files are written
    (made.folder / "a").write_text("1")
    for call in (
        lambda: output.check(str(tmp_path / "out"), MERGE_RECORD),
        lambda: Publication(Store(tmp_path), "out"),
        made.commit,
    ):
        with pytest.raises(DeletionError, match="is a symbolic link"):
            call()
    made.discard()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "status.json"])
def test_a_linked_file_of_a_run_is_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs").write_text("theirs")
    run = Store(tmp_path / "run")
    run.make()
    (tmp_path / "run" / name).symlink_to(tmp_path / "theirs")
    before = tree(tmp_path)
    write = {".lock": lambda: lock(run).__enter__(), "metrics.jsonl": lambda: run.append_text(name, "{}\n")}
    for call in (write.get(name, lambda: run.write_json(name, {})), lambda: run.remove(name)):
        with pytest.raises(DeletionError, match="symbolic link"):
            call()
    assert tree(tmp_path) == before


def test_a_run_folder_may_be_a_link(tmp_path: Path) -> None:
    """The folder that the user named is the user's choice."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "run")
    commit(store.join("checkpoints"), "step-00000001", FILES)
    commit(store.join("checkpoints"), "step-00000002", FILES)
    store.write_text("a", "b")
    assert remove_old(store, keep=1, needed=[]) == []
    assert store.names("checkpoints") == ["step-00000002"]


def test_unfinished_work_is_removed_only_if_it_is_all(tmp_path: Path) -> None:
    folder = Store(tmp_path / "default.unfinished")
    parts = ResultParts(folder, "one")
    folder.write_text("part-000000.json", "[]")
    folder.write_text(".lock", "")
    parts.remove()
    assert not folder.exists()
    folder.write_text("notes.json", "mine")
    with pytest.raises(DeletionError, match=r"notes\.json"):
        ResultParts(folder, "two")
    with pytest.raises(DeletionError, match=r"notes\.json"):
        parts.remove()
    assert folder.read_text("notes.json") == "mine"


def test_a_new_run_removes_only_its_own_events(tmp_path: Path) -> None:
    run = Store(tmp_path / "run")
    old = "events.out.tfevents.1.host.step-00000000"
    for name in (old, "events.out.tfevents.1.host", "notes.txt", "profile/plugins.txt"):
        run.write_text(f"{TENSORBOARD}/{name}", "x")
    TensorBoard(None, run, after_step=0, warn=print).close(finished=True)
    left = run.files(TENSORBOARD)
    assert old not in left
    assert {"events.out.tfevents.1.host", "notes.txt", "profile/plugins.txt"} <= set(left)


def test_a_damaged_token_store_is_replaced_only_if_it_is_one(tmp_path: Path) -> None:
    root = Store(tmp_path)
    for files, replaced in ((("train-00000.arrow",), True), (("train-00000.arrow", "notes.txt"), False)):
        for name in files:
            root.write_text(f"abc/{name}", "x")
        root.write_text(".staging/manifest.json", "{}")
        if replaced:
            prepare._publish(root, root.join(".staging"), ".staging", "abc")
            assert root.names("abc") == ["manifest.json"]
            root.remove("abc")
        else:
            with pytest.raises(DeletionError, match=r"notes\.txt"):
                prepare._publish(root, root.join(".staging"), ".staging", "abc")


def test_an_interrupted_upload_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    store = Store("memory://deletion/uploads")
    store.remove("adapter")
    made = Publication(store, "adapter")
    (made.folder / "a").write_text("1")
    (made.folder / "b").write_text("2")
    put, count = store.put_file, iter(range(3))

    def stops(path: Path, name: str) -> None:
        if next(count) == 1:
            raise KeyboardInterrupt
        put(path, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "put_file", stops)
        with pytest.raises(KeyboardInterrupt):
            made.commit()
    assert sorted(store.files("adapter")) == [UPLOADING, "a"]
    store.write_text("adapter/mine", "x")
    with pytest.raises(DeletionError, match="mine"):
        Publication(store, "adapter")
    store.remove("adapter/mine")
    commit(store, "adapter", {"c": b"3"})
    assert sorted(store.files("adapter")) == ["COMMIT", "c"]


def test_markers_of_a_received_folder_do_not_widen_what_is_deleted(run: Store, tmp_path: Path) -> None:
    """A COMMIT that lists ../ or an absolute path names no file of the folder."""
    (tmp_path / "theirs.txt").write_text("theirs")
    folder = run.join("checkpoints")
    marker = folder.read_json("step-00000001/COMMIT")
    for name in ("../../../theirs.txt", str(tmp_path / "theirs.txt")):
        marker["files"][name] = marker["files"]["state.json"]
    folder.write_json("step-00000001/COMMIT", marker)
    folder.remove("step-00000001", published(folder, "step-00000001"))
    assert (tmp_path / "theirs.txt").read_text() == "theirs"
    assert not folder.exists("step-00000001")


def test_names_of_atomic_writes_are_exact() -> None:
    from tailor.store.removal import is_temporary

    own = (".tmp-a-0123abcd", ".tmp-a-b-0123abcd-before", ".tmp-a-0123abcd-00001", ".spill-ab_cd012")
    other = (
        ".tmp-a",
        ".tmp-notes-2024",
        ".tmp-a-0123ABCD",
        "tmp-a-0123abcd",
        ".tmp--0123abc",
        ".spill-a",
        ".spill-",
    )
    assert all(is_temporary(name) for name in own)
    assert not any(is_temporary(name) for name in other)
