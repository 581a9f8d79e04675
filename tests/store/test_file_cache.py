"""The cache of remote files: bounded, shared by processes, and without effect on what is read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.store import Store, file_cache
from tailor.store.file_cache import FileCache, checksum_of
from tests.helpers.faulty_storage import Fault, faults

SIZE = 1000
NAMES = [f"{number}.arrow" for number in range(6)]


@pytest.fixture(autouse=True)
def cache_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


class Remote:
    """Six files in a remote store. fetched: the names of those that were fetched, by this process."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.store, self.fetched, self.sums = store, list[str](), dict[str, str]()
        for name in NAMES:
            store.write_bytes(name, content(name))
            (folder / "one").write_bytes(content(name))
            self.sums[name] = checksum_of(folder / "one")
        get = store.get_file

        def counted(name: str, path: Path) -> None:
            self.fetched.append(name)
            get(name, path)

        store.get_file = counted  # type: ignore[method-assign]

    def cache(self, limit: int = 10 * SIZE) -> FileCache:
        return FileCache(self.store, lambda folder, used: limit)

    def read(self, cache: FileCache, name: str) -> bytes:
        return cache.path(name, SIZE, self.sums[name]).read_bytes()


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path, Store(f"faulty://{uuid.uuid4().hex}"))


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_a_file_is_fetched_once_by_all_caches_of_the_machine(remote: Remote) -> None:
    for _ in range(3):
        cache = remote.cache()
        assert [remote.read(cache, name) for name in NAMES] == [content(name) for name in NAMES]
    assert remote.fetched == NAMES
    other = FileCache(Store(f"faulty://{uuid.uuid4().hex}"), lambda folder, used: SIZE)
    with pytest.raises(StoreError):  # control: the same checksum at another URL is another file
        other.path(NAMES[0], SIZE, remote.sums[NAMES[0]])


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(
    remote: Remote, cache_of_the_machine: Path
) -> None:
    cache = remote.cache(limit=3 * SIZE)
    for number, name in enumerate(NAMES):
        os_times(cache_of_the_machine, -1)  # what was there is a second older than what comes
        assert remote.read(cache, name) == content(name)
        assert len(kept(cache_of_the_machine)) == min(3, number + 1)
        os_times(cache_of_the_machine, -1)
        remote.read(cache, NAMES[0])  # always in use
    assert remote.fetched == NAMES
    assert remote.read(cache, NAMES[1]) == content(NAMES[1])
    assert remote.fetched[-1] == NAMES[1]  # was removed, and is fetched again


def test_the_size_of_the_cache_can_be_set(
    remote: Remote, cache_of_the_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(remote.store)
    for name in NAMES:
        remote.read(cache, name)
    assert len(kept(cache_of_the_machine)) == len(NAMES)  # control: half of the disk is more
    monkeypatch.setenv("TAILOR_CACHE_GB", str(2.5 * SIZE / 1e9))
    (cache_of_the_machine / cache.path(NAMES[0], SIZE, remote.sums[NAMES[0]]).name).unlink()
    remote.read(cache, NAMES[0])
    assert len(kept(cache_of_the_machine)) == 2


@pytest.mark.parametrize("value", ["big", "-1", "nan", "inf", "200 GB"])
def test_a_size_that_is_none_is_named(
    value: str, remote: Remote, cache_of_the_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILOR_CACHE_GB", value)
    with pytest.raises(StoreError, match=f"TAILOR_CACHE_GB: '{value}' is not a size") as caught:
        remote.read(FileCache(remote.store), NAMES[0])
    assert "TAILOR_CACHE_GB=200" in (caught.value.hint or "")
    assert not kept(cache_of_the_machine)


def os_times(folder: Path, seconds: int) -> None:
    for path in kept(folder) if folder.exists() else ():
        about = path.stat()
        os.utime(path, ns=(about.st_atime_ns + seconds * 10**9, about.st_mtime_ns))


def test_an_open_file_survives_its_removal(remote: Remote) -> None:
    cache = remote.cache(limit=SIZE)
    with cache.path(NAMES[0], SIZE, remote.sums[NAMES[0]]).open("rb") as stream:
        path = cache.path(NAMES[1], SIZE, remote.sums[NAMES[1]])
        assert len(kept(path.parent)) == 1
        assert stream.read() == content(NAMES[0])


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "all gone"])
def test_the_loss_of_the_cache_changes_nothing(
    remote: Remote, cache_of_the_machine: Path, damage: str
) -> None:
    cache = remote.cache()
    path = cache.path(NAMES[0], SIZE, remote.sums[NAMES[0]])
    if damage == "cut":
        path.write_bytes(content(NAMES[0])[:10])
    elif damage == "changed":  # of the same size
        path.write_bytes(bytes(SIZE))
    elif damage == "gone":
        path.unlink()
    else:
        shutil.rmtree(cache_of_the_machine)
    assert remote.read(cache, NAMES[0]) == content(NAMES[0])
    assert remote.fetched == [NAMES[0]] * 2


def test_what_an_earlier_process_left_is_checked_once(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remote.cache().path(NAMES[0], SIZE, remote.sums[NAMES[0]])
    path.write_bytes(bytes(SIZE))  # a bad disk
    assert remote.read(remote.cache(), NAMES[0]) == content(NAMES[0])
    assert remote.fetched == [NAMES[0]] * 2
    read = list[Path]()
    monkeypatch.setattr(file_cache, "checksum_of", lambda path: read.append(path) or checksum_of(path))
    cache = remote.cache()
    for _ in range(3):
        assert remote.read(cache, NAMES[0]) == content(NAMES[0])
    assert read == [path]


def test_only_files_of_the_cache_are_removed_and_no_link_is_followed(
    remote: Remote, tmp_path: Path, cache_of_the_machine: Path
) -> None:
    """As in a folder that others may write to."""
    path = remote.cache().path(NAMES[0], SIZE, remote.sums[NAMES[0]])
    mine, kept_link = tmp_path / "mine", cache_of_the_machine / ("a" * 32)
    mine.write_bytes(content(NAMES[0]))
    os.utime(mine, ns=(1, 1))
    path.unlink()
    foreign = [cache_of_the_machine / name for name in ("notes.txt", ".tmp-notes", "0" * 31, "x" * 32)]
    for file in foreign:
        file.write_bytes(bytes(SIZE))
    for link in (path, path.with_name(f".tmp-{path.name}"), kept_link):
        link.symlink_to(mine)
    assert remote.read(remote.cache(limit=0), NAMES[0]) == content(NAMES[0])
    assert not path.is_symlink()  # replaced by the file
    assert mine.stat().st_atime_ns == mine.stat().st_mtime_ns == 1
    assert mine.read_bytes() == content(NAMES[0])
    remote.read(remote.cache(limit=0), NAMES[1])
    assert not path.exists()  # control: a file of the cache is removed
    assert kept_link.is_symlink()
    assert all(file.exists() for file in foreign)


def test_a_file_that_is_renamed_while_room_is_made_is_no_error(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir
    gone = f".tmp-{'0' * 32}-12345678"
    monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), path / gone, path / ("0" * 32)])
    assert remote.read(remote.cache(), NAMES[0]) == content(NAMES[0])


@pytest.mark.parametrize("what", ["a file", "a folder in the place of a file", "no rights"])
def test_a_cache_that_cannot_be_used_is_named(
    remote: Remote, cache_of_the_machine: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remote.cache().path(NAMES[0], SIZE, remote.sums[NAMES[0]])
    path.unlink()
    if what == "a file":
        shutil.rmtree(cache_of_the_machine)
        cache_of_the_machine.write_text("")
    elif what == "no rights":

        def denied(*arguments: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "replace", denied)
    else:
        path.mkdir()
    with pytest.raises(StoreError, match="shards") as caught:
        remote.read(remote.cache(), NAMES[0])
    assert caught.value.hint
    if what == "no rights":
        assert "TAILOR_CACHE" in caught.value.hint
        assert not [path for path in cache_of_the_machine.iterdir() if path.is_file()]


def test_a_damaged_file_of_the_store_is_an_error_and_leaves_nothing(
    remote: Remote, cache_of_the_machine: Path
) -> None:
    remote.store.write_bytes(NAMES[0], bytes(SIZE))
    remote.store.remove(NAMES[1])
    for name, why in ((NAMES[0], "is damaged: its checksum"), (NAMES[1], "does not exist")):
        with pytest.raises(StoreError, match=rf"\.arrow {why}") as caught:
            remote.read(remote.cache(), name)
        assert "prepares the tokens again" in (caught.value.hint or "")
    assert not kept(cache_of_the_machine)
    assert remote.fetched.pop() == NAMES[1]
    assert remote.fetched == [NAMES[0]] * 2  # a second try, in case it was damaged on the way


def test_a_full_disk_empties_the_cache_first_and_is_named_if_that_is_not_enough(
    remote: Remote, cache_of_the_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Exception:
        return OSError(errno.ENOSPC, "No space left on device")

    cache = remote.cache()
    remote.read(cache, NAMES[0])
    with faults(Fault("read", "1.arrow", full, times=1)):
        assert remote.read(cache, NAMES[1]) == content(NAMES[1])
    assert len(kept(cache_of_the_machine)) == 1  # the first file made room
    with faults(Fault("read", "2.arrow", full)), pytest.raises(StoreError, match=r"2\.arrow") as caught:
        remote.read(cache, NAMES[2])
    assert "TAILOR_CACHE" in (caught.value.hint or "")
    assert remote.read(cache, NAMES[2]) == content(NAMES[2])  # and with space again, all is well


def _shared(url: str) -> Store:
    """A store that several processes see: a local folder, used as if it were remote."""
    Path(url).mkdir(exist_ok=True)
    store = Store(url)
    store.is_local = False
    return store


def _killed(url: str, name: str, checksum: str) -> None:
    store = _shared(url)

    def half(name: str, path: Path) -> None:
        path.write_bytes(content(name)[: SIZE // 2])
        os._exit(9)

    store.get_file = half  # type: ignore[method-assign]
    FileCache(store).path(name, SIZE, checksum)


def _reads(url: str, sums: dict[str, str], seed: int, failed: Any, fetched: Any) -> None:
    store, draw = _shared(url), random.Random(seed)
    get = store.get_file

    def counted(name: str, path: Path) -> None:
        with fetched.get_lock():
            fetched.value += 1
        get(name, path)

    store.get_file = counted  # type: ignore[method-assign]
    cache = FileCache(store, lambda folder, used: 2 * SIZE)
    for _ in range(60):
        name = draw.choice(NAMES)
        for _ in range(20):
            try:
                found = cache.path(name, SIZE, sums[name]).read_bytes()
                break
            except FileNotFoundError:  # removed by the other one before it was open
                continue
        if found != content(name):
            failed.value += 1


def test_a_killed_process_leaves_nothing_that_lasts(tmp_path: Path, cache_of_the_machine: Path) -> None:
    url = str(tmp_path / "store")
    remote = Remote(tmp_path, _shared(url))
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_killed, args=(url, NAMES[0], remote.sums[NAMES[0]]))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [path.name[:5] for path in kept(cache_of_the_machine)] == [".tmp-"]
    assert remote.read(remote.cache(), NAMES[1]) == content(NAMES[1])
    assert len(kept(cache_of_the_machine)) == 1  # what it left is removed
    assert remote.read(remote.cache(), NAMES[0]) == content(NAMES[0])


def test_two_runs_at_once_with_too_little_room(tmp_path: Path, cache_of_the_machine: Path) -> None:
    url = str(tmp_path / "store")
    sums = Remote(tmp_path, _shared(url)).sums
    context = multiprocessing.get_context("fork")
    failed, fetched = context.Value("i", 0), context.Value("i", 0)
    processes = [context.Process(target=_reads, args=(url, sums, seed, failed, fetched)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert failed.value == 0
    assert fetched.value > 20  # control: they took the files from each other
    assert len(kept(cache_of_the_machine)) <= 4  # the limit, and what was fetched at the same time
