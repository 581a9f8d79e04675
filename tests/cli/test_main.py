from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tailor
from tailor.cli import main as cli
from tailor.errors import Problem, RecipeError, StoreError

HEAVY = ("torch", "ray", "transformers")


def command(error: BaseException | None = None, code: int = 0) -> types.SimpleNamespace:
    """A command that ends as told."""

    def execute(args: object) -> int:
        if error:
            raise error
        return code

    return types.SimpleNamespace(configure=lambda parser: parser.add_argument("--x"), execute=execute)


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: str) -> int:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return cli.main(["run", *arguments])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], []):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tailor {tailor.__version__}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("validat", "tailor: validat: unknown command; did you mean validate?"),
        ("--frobnicate", "tailor: --frobnicate: unknown option"),
    ],
)
def test_unknown_command(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr().err == f"{text}\n  hint: `tailor --help` lists the commands\n"


def test_a_users_mistake_is_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command(StoreError("no such bucket", hint="make it"))) == 2
    assert capsys.readouterr().err == "tailor: no such bucket\n  hint: make it\n"


def test_a_recipes_problems_are_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = [Problem("r.yaml", 2, 1, "b", "bad"), Problem("r.yaml", 1, 1, "a", "bad")]
    assert run(monkeypatch, command(RecipeError(problems))) == 2
    assert capsys.readouterr().err == "r.yaml:1:1: a: bad\nr.yaml:2:1: b: bad\n"


def test_an_internal_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command(ValueError("odd\nthing"))) == 70
    assert capsys.readouterr().err == (
        "tailor: internal error: ValueError: odd thing; run again with --debug for the traceback\n"
    )


def test_a_full_disk_is_no_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command(OSError(28, "No space left on device", "/x/tokens"))) == 2
    assert capsys.readouterr().err == (
        "tailor: a file cannot be written: [Errno 28] No space left on device: '/x/tokens'\n"
        "  hint: free some space, then run the same command again\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "run"], ["run", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: command(ValueError("odd")))
    with pytest.raises(ValueError, match="odd"):
        cli.main(arguments)


def test_interrupt_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command(KeyboardInterrupt())) == 130
    assert run(monkeypatch, command(code=3)) == 3
    assert run(monkeypatch, command(), "--y") == 2
    assert "unrecognized arguments: --y" in capsys.readouterr().err
    assert run(monkeypatch, command(), "--help") == 0


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there(name: str) -> None:
    module = importlib.import_module(cli.COMMANDS[name][0])
    assert callable(module.configure)
    assert callable(module.execute)


def imported(code: str, cwd: Path) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the code."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_validate_imports_nothing_heavy(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "spec" / "fixtures" / "recipe" / "base_good.yaml"
    code = f"from tailor.cli.main import main\nassert main(['validate', {str(recipe)!r}]) == 0"
    assert not imported(code, tmp_path) & {*HEAVY, "numpy", "pyarrow", "rich", "jinja2", "fsspec"}


def test_help_imports_no_pydantic(tmp_path: Path) -> None:
    modules = imported("from tailor.cli.main import main\nmain(['--help'])", tmp_path)
    assert not modules & {*HEAVY, "numpy", "pydantic", "yaml"}


def test_command_modules_start_light(tmp_path: Path) -> None:
    modules = [module for module, _ in cli.COMMANDS.values()]
    assert not imported(f"import {', '.join(modules)}", tmp_path) & set(HEAVY)


def test_the_import_test_sees_imports(tmp_path: Path) -> None:
    """The control."""
    assert "numpy" in imported("import numpy", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(["--help"], 150), (["validate", "base_good.yaml"], 400), (["validate", "five_mistakes.yaml"], 400)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_start_imports_few_modules(arguments: list[str], limit: int) -> None:
    """`benchmarks/startup.py` measures the seconds; this counts what takes them."""
    code = (
        "import contextlib, sys; from tailor.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    recipes = Path(__file__).parents[1] / "spec" / "fixtures" / "recipe"
    done = subprocess.run([sys.executable, "-c", code], cwd=recipes, capture_output=True, text=True)
    assert int(done.stderr.splitlines()[-1]) < limit
