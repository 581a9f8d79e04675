"""The store: atomic writes, committed folders, and errors that name the URL, locally and on a remote file system."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tailor.errors import StoreError
from tailor.store import COMMIT, Store, hint_of, stamp_of, verified
from tailor.store.publication import Publication
from tests.helpers.http_server import web
from tests.helpers.s3 import forget_clients
from tests.helpers.stores import commit


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/store")
    return Store(tmp_path / "store" if request.param == "local" else f"memory://{uuid.uuid4().hex}/store")


def test_reads_back_what_it_wrote(store):
    store.write_text("a/b.txt", "naïve\n")
    store.write_json("a/c.json", {"x": [1, 2]})
    assert store.read_text("a/b.txt") == "naïve\n"
    assert store.read_json("a/c.json") == {"x": [1, 2]}
    assert store.names("a") == ["b.txt", "c.json"]
    assert store.names() == ["a"]
    assert store.names("nothing") == []
    assert store.exists("a/b.txt")
    assert not store.exists("a/d.txt")
    assert store.join("a", "deeper").url == f"{store.url}/a/deeper"
    assert store.join("a").read_text("b.txt") == "naïve\n"
    store.append_text("log", "one\n")
    store.append_text("log", "two\n")
    assert store.read_text("log") == "one\ntwo\n"
    assert store.size("log") == 8
    store.remove("a")
    assert store.names() == ["log"]
    store.remove("a")


def test_a_failing_write_leaves_the_old_file(store):
    store.write_text("f", "old")

    def fail() -> None:
        with store.open("f", "wb") as stream:
            stream.write(b"new, but")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.read_text("f") == "old"
    assert store.names() == ["f"]


def test_a_folder_appears_when_it_is_complete(store):
    files = {"a.bin": b"123", "sub/b.bin": b"4567"}
    commit(store, "out", files)
    assert store.is_committed("out")
    assert store.names() == ["out"]
    marker = store.read_json(f"out/{COMMIT}")["files"]
    assert {name: entry["bytes"] for name, entry in marker.items()} == {"a.bin": 3, "sub/b.bin": 4}
    assert {name: store.read_bytes(f"out/{name}") for name in marker} == files
    # One that fails half-way leaves the one before; a new one replaces it.
    made = Publication(store, "out")
    (made.folder / "a.bin").write_bytes(b"half")
    made.__exit__(RuntimeError)
    assert store.read_bytes("out/a.bin") == b"123"
    commit(store, "out", {"c.bin": b"c"})
    assert store.names("out") == [COMMIT, "c.bin"]
    assert not made.folder.exists()


def test_the_marker_comes_last(store):
    seen = []
    made = Publication(store, "out")
    (made.folder / "a.bin").write_bytes(b"123")
    made.commit(lambda: seen.append(store.is_committed("out")))
    assert set(seen) == {False}
    assert store.is_committed("out")


def test_leftovers_of_a_dead_writer_are_removed(store, tmp_path):
    commit(store, "whole", {"a": b"1"})
    half = Publication(store, "half")
    (half.folder / "a").write_bytes(b"1")
    store.write_text("other/a", "no marker")
    store.write_text("mine/a", "a name that the writer does not use")
    store.write_text(".tmp-mine", "not a name of an atomic write")
    for _ in range(2):
        store.sweep(re.compile("whole|half|other"), {"a"}.__contains__)
        assert store.names() == ["mine", "whole"]
        assert store.exists(".tmp-mine")
        assert not half.folder.exists()


def test_notes_in_a_complete_folder_do_not_make_it_unreadable(store):
    commit(store, "out", {"a.bin": b"123"})
    for name in ("README.md", "notes.txt", "plots/loss.png", ".DS_Store"):
        store.write_bytes(f"out/{name}", b"mine")
    with verified(store, "out") as folder:
        assert (folder / "a.bin").read_bytes() == b"123"
    for name in ("own.py", "config.json", "b.safetensors", "merges.txt", "vocab.txt", "sub/chat.jinja"):
        store.write_bytes(f"out/{name}", b"mine")
        with pytest.raises(StoreError, match=f"{name} is not listed"), verified(store, "out"):
            pass
        store.remove(f"out/{name}")


def test_a_changed_file_of_a_complete_folder_is_named(store):
    commit(store, "out", {"a.bin": b"123", "sub/b.bin": b"4567"})
    with verified(store, "out") as folder:
        assert (folder / "sub" / "b.bin").read_bytes() == b"4567"
    marker = store.read_json(f"out/{COMMIT}")["files"]
    store.write_json(f"out/{COMMIT}", marker)  # the format of older versions
    with verified(store, "out"):
        pass

    def entry_left_out() -> None:
        store.write_bytes("out/sub/b.bin", b"4567")
        store.write_json(f"out/{COMMIT}", {"a.bin": marker["a.bin"]})

    for change, told in (
        (
            lambda: store.write_bytes("out/sub/b.bin", b"4568"),
            "was changed: its checksum differs from COMMIT",
        ),
        (lambda: store.write_bytes("out/sub/b.bin", b"456"), "has 3 bytes instead of 4"),
        (lambda: store.remove("out/sub"), "is missing"),
        (entry_left_out, "is not listed in the folder's COMMIT file"),
    ):
        change()
        with pytest.raises(StoreError, match=told) as caught, verified(store, "out"):
            pass
        assert caught.value.message.startswith(f"{store.url}/out/sub/b.bin ")
        repair = f"restore the file, or remove {store.url}/out if you do not need it"
        assert caught.value.hint == (
            "move it to another folder: libraries might load it with the files that are listed"
            if change is entry_left_out
            else repair
        )
    store.write_json(f"out/{COMMIT}", {**marker, "c.bin": marker["a.bin"]})
    with pytest.raises(StoreError, match=r"out/c\.bin is missing"), verified(store, "out"):
        pass
    for strange, told in (
        ([1], "is damaged: it is not a JSON object"),
        ({"a.bin": "x"}, r"is damaged: a\.bin: "),
        ({"a.bin": {"bytes": 3}}, r"is damaged: it has no a\.bin\.sha256"),
        ({"format_version": 2, "files": {"a.bin": 3}}, r"is damaged: files\.a\.bin: "),
        ({"format_version": 9}, "was written by a newer version of tailor: its format has version 9"),
    ):
        store.write_json(f"out/{COMMIT}", strange)
        with pytest.raises(StoreError, match=f"out/COMMIT {told}"), verified(store, "out"):
            pass


def test_a_verified_copy_is_removed_after_its_last_reader(store, tmp_path):
    commit(store, "out", {"a.bin": b"123"})
    copies = tmp_path / "cache" / "files"
    with verified(store, "out") as first:
        with verified(store, "out") as second:
            assert first == second
        assert (first / "a.bin").exists()
    assert store.is_local or not [path for path in copies.iterdir() if path.is_dir()]
    # The control: other copies stay, for the next run.
    store.local_path("out")
    assert store.is_local or len([path for path in copies.iterdir() if path.is_dir()]) == 1


def test_local_path(store, tmp_path):
    store.write_text("a/b.txt", "1")
    path = store.local_path("a/b.txt")
    assert path.read_text() == "1"
    assert (store.local_path("a") / "b.txt").read_text() == "1"
    if not store.is_local:
        assert path == store.local_path("a/b.txt")
        assert path.is_relative_to(tmp_path / "cache")
        store.write_text("a/b.txt", "22")
        assert store.local_path("a/b.txt").read_text() == "22"


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_borrowed_copy_that_is_damaged_is_copied_again(store):
    store.write_text("a/b.txt", "1")

    def read() -> None:
        with store.borrowed_path("a") as folder:
            (folder / "b.txt").write_text("2")
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        read()
    with store.borrowed_path("a") as folder:
        assert (folder / "b.txt").read_text() == "1"


def test_rename(store):
    store.write_text("a/f", "1")
    assert store.rename("a", "b")
    assert store.read_text("b/f") == "1"
    if store.is_local:
        store.write_text("a/f", "2")
        assert not store.rename("a", "b")
        assert store.read_text("b/f") == "1"


def test_errors_name_the_url(store, tmp_path):
    with pytest.raises(StoreError, match=r"nothing/here does not exist"):
        store.read_text("nothing/here")
    store.write_text("bad.json", "{")
    with pytest.raises(StoreError, match=r"bad\.json is not valid JSON"):
        store.read_json("bad.json")
    with pytest.raises(StoreError, match=r"^nosuch://x: "):
        Store("nosuch://x")
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json("nan.json", float("nan"))
    assert not store.exists("nan.json")
    (tmp_path / "file").write_text("")


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("file", "a part of the path is a file"),
        ("file/x", "a part of the path is a file"),
        ("/dev/full", "a part of the path is a file"),
        ("/proc/x", "the folder cannot be created"),
    ],
)
def test_an_error_for_an_unwritable_path_names_the_folder(folder, why, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "made").mkdir()
    store = Store(tmp_path / folder)
    for write in (
        lambda: store.write_text(".lock", "x"),
        lambda: store.append_text("log", "x"),
        lambda: Publication(store, "out"),
        store.make,
    ):
        with pytest.raises(StoreError) as caught:
            write()
        assert caught.value.message == f"{tmp_path / folder} cannot be written: {why}"
        assert caught.value.hint == "set data.store (or save.to) to a writable folder"
    store.remove("nothing")


def test_make(store):
    store.make()
    assert store.names() == []
    assert not store.is_local or Path(store.url).is_dir()


def test_errors_of_remote_stores_have_a_hint(tmp_path, monkeypatch):
    forget_clients()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"^s3://b/x/f: .*; set AWS_ACCESS_KEY_ID and"):
        Store("s3://b/x").write_text("f", "x")
    with pytest.raises(StoreError, match=r"s4; protocols are, for example, s3, gs, hf, file and memory$"):
        Store("s4://b")


def test_plain_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    assert store.is_local
    assert store.url == str(tmp_path / "here")
    store.write_json("x.json", 1)
    assert json.loads(Path("here/x.json").read_text()) == 1


COPY = """
import sys
from tailor.store import Store
path = Store(sys.argv[1]).local_path()
assert path == Store(sys.argv[1]).local_path(), "a process keeps its copy"
print(path.read_text())
"""


@pytest.mark.parametrize("etags", [False, True])
def test_a_copy_is_kept_if_the_store_reports_versions(etags, tmp_path, monkeypatch):
    """Without ETags each process makes its own copy, as a changed file of the same size could not be detected."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path))
    with web() as served:
        served.etags = etags
        kept = []
        for content in (b"one", b"two", b"two"):
            served.files["/a.txt"] = content
            said = subprocess.run([sys.executable, "-c", COPY, f"{served.url}/a.txt"], capture_output=True)
            assert said.stdout.strip() == content, said.stderr.decode()
            kept.append(len(list((tmp_path / "files").glob("*/a.txt"))))
        assert kept == ([1, 2, 2] if etags else [0, 0, 0])
        assert etags or not list((tmp_path / "files").iterdir())


def test_the_hub_reports_the_version_of_a_file():
    from huggingface_hub import RepoFile
    from huggingface_hub.hf_file_system import _cache_info_from_path_info

    infos = [
        _cache_info_from_path_info(RepoFile(path="a.jsonl", size=3, oid=oid, lastCommit=None), "a.jsonl")
        for oid in ("1" * 40, "2" * 40)
    ]
    assert [stamp_of(info) for info in infos] == ["1" * 40, "2" * 40]
    assert stamp_of({"name": "a.jsonl", "size": 3}) is None  # the control


@pytest.mark.parametrize(
    ("code", "operation", "right"),
    [
        ("AccessDenied", "PutObject", "s3:PutObject on arn:aws:s3:::bucket/runs/x"),
        ("AccessDenied", "CreateMultipartUpload", "s3:PutObject on arn:aws:s3:::bucket/runs/x"),
        ("AccessDenied", "ListObjectsV2", "s3:ListBucket on arn:aws:s3:::bucket"),
        ("403", "HeadObject", "s3:GetObject on arn:aws:s3:::bucket/runs/x"),
        ("AccessDenied", "DeleteObjects", "s3:DeleteObject on arn:aws:s3:::bucket/runs/x"),
        ("InvalidAccessKeyId", "PutObject", None),
        ("ExpiredToken", "GetObject", None),
    ],
)
def test_a_denied_request_names_the_missing_right(code: str, operation: str, right: str | None) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    response = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {}}
    error = translate_boto_error(ClientError(response, operation))  # type: ignore[arg-type]
    hint = hint_of("s3://bucket/runs/x", error)
    assert hint is not None
    if right is None:
        assert hint.startswith("set AWS_ACCESS_KEY_ID"), "the control: the credentials themselves are wrong"
    else:
        assert f"lack the right {right}: " in hint
        assert hint.startswith("the credentials are valid") == (code == "AccessDenied")
