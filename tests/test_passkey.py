"""The tiny passkey recipe: its data is what its generator makes, and what saw 128 tokens finds a key in 512."""

from __future__ import annotations

import json
import lzma
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tailor.encode.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "passkey"
LENGTHS = [64, 128, 192, 256, 384, 512]


def test_the_data_is_what_the_generator_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "make_data.py"), "rows", str(tmp_path)], check=True)
    assert (tmp_path / "train.jsonl").read_bytes() == (FOLDER / "train.jsonl").read_bytes()
    tokenizer = load_tokenizer(str(FOLDER / "base"))
    lines = lzma.decompress((FOLDER / "many.jsonl.xz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    made = runpy.run_path(str(FOLDER / "make_data.py"))
    assert rows == made["notes"](made["MANY"], seed=2)
    lengths = [len(tokenizer.encode(row["prompt"] + row["response"])) + 1 for row in rows[::10]]
    assert max(lengths) <= 128, "nothing of the base's reading is longer than it was made for"
    assert min(lengths) < 30
    assert max(lengths) > 120
    assert "<unk>" not in tokenizer.decode(tokenizer.encode(rows[0]["prompt"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_finds_keys_beyond_what_it_saw_and_its_base_does_not(tmp_path: Path) -> None:
    run = tmp_path / "passkey"
    command = [sys.executable, "-m", "tailor", "run", "recipes/passkey-tiny.yaml", f"save.to={run}"]
    command.append("evaluate.final.tasks.0.samples=4")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr
    folder = run / "evaluation" / "final"
    grid = json.loads((folder / "results.json").read_text())["grids"]["passkey"]
    assert grid["lengths"] == LENGTHS
    trained, base = grid["models"]["passkey"], grid["models"]["base"]
    assert min(share for row in trained for share in row) >= 0.75
    assert sum(map(sum, trained)) > 0.98 * 30
    assert min(share for row in base[:2] for share in row) == 1, "within its length the base finds them all"
    assert sum(base[-1]) / 5 <= 0.1, (
        "the control: without the stretched positions, none at four times the length"
    )
    assert (folder / "passkey.png").read_bytes().startswith(b"\x89PNG")
    assert "passkey: % correct of base" in done.stdout
    assert json.loads((run / "adapter" / "config.json").read_text())["max_position_embeddings"] == 512
