"""A damaged, foreign or newer file of a run is an error that names it, in every command, and never more than that run's."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailor.artifacts.load import load_run
from tailor.cli.main import INTERNAL_ERROR, main
from tailor.errors import ModelError
from tailor.store.json_files import JsonFile
from tests.helpers import odd_files
from tests.helpers.odd_files import COMMANDS, DAMAGES, FILES
from tests.helpers.run_folders import make_run

QUICK = [line for line in COMMANDS if "warm_start" not in line and "save.resume" not in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "place"
    folder.mkdir()
    odd_files.make_run(folder)
    return folder


def results(
    place: Path, cases: Iterator[tuple[str, str, tuple[str, ...]]]
) -> list[tuple[int, str, str, str, str]]:
    """(exit code, file, damage, command, errors) of each command on a run with one damaged file."""
    found = []
    for file, damage, commands in cases:
        with odd_files.damaged(place, file, damage) as run:
            folder = run.parent.parent
            names = {
                "run": run,
                "folder": folder,
                "recipe": folder / "recipe.yaml",
                "rows": folder / "rows.jsonl",
            }
            for number, command in enumerate(commands):
                code, err = odd_files.command(command.format(**names, out=folder / f"out{number}"))
                found.append((code, file, damage, command, err))
    return found


def rotating(commands: list[str], damages: int, width: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Each file with `damages` damages and `width` commands, other ones for each file."""
    kinds, lines = itertools.cycle(DAMAGES), itertools.cycle(commands)
    for file in FILES:
        for damage in itertools.islice(kinds, damages):
            yield file, damage, tuple(itertools.islice(lines, width))


def check(found: list[tuple[int, str, str, str, str]]) -> None:
    internal = [
        (file, damage, command, err[-300:])
        for code, file, damage, command, err in found
        if code == INTERNAL_ERROR
    ]
    assert not internal
    assert {code for code, *_ in found} <= {0, 1, 2, 3}


def test_no_command_fails_internally_for_an_odd_file(place: Path) -> None:
    found = results(place, rotating(QUICK, 2, 2))
    check(found)
    assert sum(code == 2 for code, *_ in found) > len(found) / 10, "the control: damages are noticed"


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_command_fails_internally_for_many_odd_files(place: Path) -> None:
    check(results(place, rotating(list(COMMANDS), len(DAMAGES), 6)))


def test_the_fuzz_detects_a_file_that_is_not_checked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: JsonFile, content: bytes, url: str) -> Any:
        return json.loads(content)

    monkeypatch.setattr(JsonFile, "parse", unchecked)
    found = results(
        place, iter([("status.json", "foreign", ("show {run}",)), ("plan.json", "foreign", ("runs {run}",))])
    )
    assert [code for code, *_ in found] == [INTERNAL_ERROR] * 2


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("status.json", "", "status.json is damaged: it is empty"),
        ("status.json", '{"format_version": 7}', "status.json was written by a newer version of tailor"),
        ("plan.json", "{}", "plan.json is damaged: it has no model"),
        ("plan.json", '{"model": {"path":', "plan.json is damaged: it is not valid JSON"),
        ("metrics.jsonl", '{"kind":"train","step":1}\n', "metrics.jsonl:1: the line is damaged"),
        (
            "metrics.jsonl",
            '{"kind":"header","format_version":7}\n',
            "metrics.jsonl was written by a newer version",
        ),
    ],
)
def test_a_damaged_run_is_listed_as_such_beside_the_others(
    file: str, content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "odd", "second"):
        make_run(str(tmp_path / name), steps=2)
    (tmp_path / "odd" / file).write_text(content)
    assert main(["runs", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    states = {line.split()[0]: line.split()[1] for line in captured.out.splitlines()[1:]}
    assert states == {"first": "finished", "odd": "damaged", "second": "finished"}
    assert captured.err.startswith(f"tailor: {tmp_path}/odd/{reason}")
    assert "\n  hint: " in captured.err
    assert main(["show", str(tmp_path / "odd")]) == 2
    assert main(["show", str(tmp_path / "first")]) == 0


@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "huge"])
def test_a_file_that_does_not_end_is_not_read(
    file: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "odd"):
        make_run(str(tmp_path / name), steps=2)
    odd = tmp_path / "odd" / file
    odd.unlink()
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "huge":
        with odd.open("wb") as stream:
            stream.truncate(1 << 40)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else odd.name)
    assert main(["runs", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    states = {line.split()[0]: line.split()[1] for line in captured.out.splitlines()[1:]}
    assert states == {"first": "finished", "odd": "damaged"}
    assert captured.err.startswith(f"tailor: {odd}")
    assert "None" not in captured.err
    assert main(["show", str(tmp_path / "odd")]) == 2


def test_an_adapter_in_a_pickle_is_named(place: Path) -> None:
    with odd_files.damaged(place, ".lock", "empty") as run:
        adapter = run / "adapter"
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        (adapter / "COMMIT").unlink()
        with pytest.raises(ModelError, match=r"has its weights in adapter_model\.bin, a pickle"):
            load_run(str(adapter))
        for command in (
            "generate {run} --prompt Hi",
            "merge {run} --to {out}",
            "average {run} {run} --to {out}",
        ):
            code, err = odd_files.command(command.format(run=adapter, out=run.parent / "out"))
            assert code == 2
            assert "hint: if you trust it, load it with PEFT and save it again" in err
