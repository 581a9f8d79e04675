"""The command blocks of the guides run in sequence, as printed, in an empty folder with the data and the model that they name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks, tailor_words

QUICKSTART = ROOT / "recipes" / "quickstart"
GUIDES = {"README.md": "meta-llama/Llama-3.2-3B-Instruct", "docs/install.md": "Qwen/Qwen2.5-0.5B-Instruct"}
"""Page -> the model that its commands name, which is a folder here."""


def commands(page: str) -> list[list[str]]:
    """The words of the commands in the page's block that begins with `tailor init` and a model."""
    for _, text, _ in blocks((ROOT / page).read_text(), "sh"):
        found = [words for line in text.splitlines() if (words := tailor_words(line))]
        if found and found[0][0] == "init" and "--model" in found[0]:
            return found
    raise AssertionError(f"{page} has no such block")


def prepare(folder: Path, model: str) -> None:
    base = folder / model
    shutil.copytree(QUICKSTART / "base", base)
    shutil.copy(ROOT / "tailor" / "encode" / "templates" / "mistral.jinja", base / "chat_template.jinja")
    lines = (QUICKSTART / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "chats.jsonl").write_text("".join(lines[:200]))


def test_the_guides_are_read() -> None:
    """Control for the soak: the blocks are found, from the first recipe to a trained model."""
    for page, model in GUIDES.items():
        found = commands(page)
        assert model in found[0]
        assert {"validate", "plan", "run"} <= {words[0] for words in found}


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", GUIDES)
def test_the_commands_run_in_sequence(page: str, tmp_path: Path) -> None:
    prepare(tmp_path, GUIDES[page])
    for words in commands(page):
        done = subprocess.run(
            [sys.executable, "-m", "tailor", *words],
            cwd=tmp_path,
            input="Which needle is for denim?\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs" / "my" / "report.html").is_file()
