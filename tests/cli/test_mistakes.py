"""Error messages of the commands after training: one expected text per mistake, for every command.

`pytest tests/cli/test_mistakes.py --update-fixtures` updates the texts.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA
from tests.helpers.trained_runs import finished_run

TEXTS = Path(__file__).parent / "mistakes"
LOADING = (
    "evaluate {run} tasks=[{{name: perplexity}}]",
    "generate {run} --prompt Hi",
    "chat {run}",
    "merge {run}",
    "export {run} --to out --weights merged",
    "export {run} --to out --as ollama",
    "push {run} me/shop --weights merged --dry-run",
)
READING = (
    "average {run} {run} --to out",
    "export {run} --to out",
    "push {run} me/shop --dry-run",
    "show {run}",
)
MISTAKES: dict[str, tuple[str, ...]] = {
    "unknown run": tuple(one.format(run="rum") for one in (*LOADING, *READING)),
    "no run": tuple(one.format(run="base") for one in ("evaluate {run}", *LOADING[3:], *READING[1:])),
    "adapter without base": tuple(one.format(run="run") for one in LOADING),
    "wrong base": tuple(one.format(run="run") for one in LOADING),
    "base of another size": tuple(one.format(run="run") for one in LOADING),
    "base named wrongly": (
        "merge run --base nowhere",
        "merge run --base run/adapter",
        "merge run --base other",
        "export run --to out --base other --weights merged",
    ),
    "no token": ("push run me/shop", "push run me/shop --public --weights merged", "push run shop"),
    "something in the way": (
        "merge run --to notes.txt",
        "merge run --to notes.txt/merged",
        "merge run --to base",
        "average run run --to run",
        "export run --to base",
        "export run --to notes.txt",
        "evaluate run --to base",
        "evaluate run --to notes.txt",
        "generate run --prompt Hi --output base",
        "generate run --prompt Hi --output notes.txt/answers.jsonl",
    ),
    "another place": (
        "generate notes.txt --prompt Hi",
        "evaluate run/checkpoints/step-00000006",
        "evaluate base",
        "export run/adapter --to out",
        "chat base --base",
        "generate run --input base",
        "generate run --input notes.txt",
        "average run base --to out",
    ),
    "idle options": (
        "export run --to out --onto full --dtype float16",
        "push run me/shop --dry-run --base base",
        "merge run --onto dequantized",
        "export run --to out --weights model",
        "average base other --to out --rank 4",
    ),
    "numbers": (
        "generate run --prompt Hi --temperature hot",
        "generate run --prompt Hi --top-p 0",
        "chat run --max-new-tokens 0",
        "evaluate run --samples -1",
        "merge run --tolerance 0",
        "average run run --to out --weights 1 x",
        "average run run --to out --weights 1",
        "average run run --to out --weights 0 0",
        "generate run --prompt=",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its base, another base of the same form, one of another size, and a text file."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a command does it before transformers is imported
    folder = tmp_path_factory.mktemp("place")
    run = finished_run(folder, {"adapter": LORA})
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("data:", "data:\n  holdout: 0.3"))
    shutil.copytree(folder / "base", folder / "other")
    tiny_llama(folder / "other", seed=7)
    tiny_llama(folder / "large", hidden_size=128)
    (folder / "notes.txt").write_text("mine\n")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_text(
    mistake: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    instead = {"adapter without base": None, "wrong base": "other", "base of another size": "large"}
    before = sorted(path.name for path in place.iterdir())
    if mistake in instead:
        (place / "base").rename(place / "kept")
        if (other := instead[mistake]) is not None:
            shutil.copytree(place / other, place / "base")
    messages = []
    try:
        for command in MISTAKES[mistake]:
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
            words = [word.replace("~", " ") for word in command.replace(": ", ":~").split()]
            code = main(words)
            error = capsys.readouterr().err.replace(str(place), "PLACE")
            messages.append(f"$ tailor {command}\n{_without_usage(error)}exit code {code}\n")
    finally:
        if mistake in instead:
            shutil.rmtree(place / "base", ignore_errors=True)
            (place / "kept").rename(place / "base")
    text = "\n".join(messages)
    file = TEXTS / f"{mistake.replace(' ', '-')}.txt"
    if request.config.getoption("--update-fixtures"):
        file.write_text(text)
    assert text == file.read_text()
    assert "Traceback" not in text
    assert "internal error" not in text
    assert "exit code 0" not in text
    assert sorted(path.name for path in place.iterdir()) == before, "nothing was written"
    assert (place / "notes.txt").read_text() == "mine\n"


def _without_usage(error: str) -> str:
    """argparse's usage differs between versions of Python."""
    return error[error.rindex("\ntailor ") + 1 :] if error.startswith("usage: ") else error
