"""Foreign text cannot control the terminal: what commands print has no control characters of it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from tailor.cli.display import Display
from tailor.cli.main import main
from tailor.cli.terminal import guarded, make_console
from tailor.layout import GENERATED
from tests.helpers.run_folders import make_run

HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202eb\u2066c\x9b31m\x7f"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_what_is_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        table = Table("a", box=None)
        table.add_row(Text(HOSTILE, "green"))
        console = make_console()
        console.print(table)
        console.print(HOSTILE)
        display = Display()
        display.line(HOSTILE)
    out, err = capsys.readouterr()
    assert not UNSAFE.search(out + err)
    assert out.count(r"\x1b[2J") == 4
    assert r"\u202e" in out
    assert r"\x1b[2J" in err


def test_the_styles_of_tailor_stay() -> None:
    stream = io.StringIO()
    console = make_console(file=stream, force_terminal=True, color_system="standard", _environ={})
    console.print(Text.assemble((HOSTILE, "green")))
    shown = stream.getvalue()
    assert shown.startswith("\x1b[32m")
    assert shown.count("\x1b") == 2
    assert r"\x1b[2J" in shown


def test_without_the_guard_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Control."""
    print(HOSTILE)
    assert UNSAFE.search(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ["validate", HOSTILE],
        ["validate", "r.yaml", f"{HOSTILE}.x=1"],
        ["validate", "r.yaml", f"train.steps='{HOSTILE}'"],
        ["show", HOSTILE],
        ["runs", HOSTILE],
        [HOSTILE],
        ["runs", f"--{HOSTILE}"],
        ["manifest", "r.yaml", "--cluster", HOSTILE],
        ["data", "report", "r.yaml", "data.template=t.jinja"],
        ["validate", "a\udc80b"],
    ],
    ids=range(10),
)
def test_errors(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: {path: .}\n")
    Path("t.jinja").write_text("{{ raise_exception('\x1b[2J') }}")
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err
    assert not UNSAFE.search(out + err)
    (out + err).encode()


def test_answers_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(str(tmp_path / "run"))
    line = '{"prompt": "a\\u001b[2J", "answer": "b\\u202e", "reference": "c\\u009b", "exact": false}\n'
    for when in ("before", "after"):
        run.write_text(GENERATED[when], line)
    assert main(["show", str(tmp_path / "run")]) == 0
    out, _ = capsys.readouterr()
    assert not UNSAFE.search(out)
    assert r"\u202e" in out
