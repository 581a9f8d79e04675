"""Imports are not interrupted by garbage collection, and collection continues afterwards."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tailor.cli import main
from tailor.imports import uncollected
from tailor.models.libraries import import_libraries


def objects() -> list[list[int]]:
    """More than a collection waits for."""
    return [[number] for number in range(20 * gc.get_threshold()[0])]


@pytest.fixture
def collections() -> Iterator[Callable[[], int]]:
    """The number of collections so far."""
    seen: list[str] = []

    def count(phase: str, _: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(count)
    yield lambda: len(seen)
    gc.callbacks.remove(count)


def test_nothing_is_collected_inside(collections: Callable[[], int]) -> None:
    before = collections()
    with uncollected():
        kept = objects()
        assert collections() == before
    assert gc.isenabled()
    young = {id(one) for generation in (0, 1) for one in gc.get_objects(generation)}
    assert not any(id(one) in young for one in kept), "the next collection would look through them"
    with uncollected():
        few = [[number] for number in range(100)]
    assert id(few[-1]) in {id(one) for one in gc.get_objects(0)}, "without an import, garbage is found soon"
    more = objects()
    assert collections() > before, "the control"
    del kept, few, more


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with uncollected():
            kept = objects()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    del kept


def test_an_error_ends_the_pause_and_a_pause_of_the_caller_stays() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def module(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(
        "import gc\nduring = gc.isenabled()\ndef configure(parser): pass\n"
        "def execute(args):\n    global later\n    later = gc.isenabled()\n    return 0\n"
    )


def test_commands_are_imported_without_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "a_command")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(main.COMMANDS, "run", ("a_command", "train"))
    assert main.main(["run"]) == 0
    command = sys.modules.pop("a_command")
    assert (command.during, command.later) == (False, True)


def test_libraries_are_imported_without_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "peft"):
        module(tmp_path, name)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_libraries()
    assert "peft" not in sys.modules
    import_libraries(adapter=True)
    found = [sys.modules[name] for name in ("bitsandbytes", "peft")]
    assert [one.during for one in found] == [False, False]
    for name in ("bitsandbytes", "peft"):
        del sys.modules[name]  # monkeypatch would put the test's module back at the end
