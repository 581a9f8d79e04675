"""What a run with new tokens leaves behind, read by plain transformers, PEFT and sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailor.artifacts.load import load_run
from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.models.embedding.settings import Embedding
from tailor.store import Store
from tailor.store.publication import Publication
from tests.helpers.plans import LORA
from tests.helpers.trained_runs import finished_run

TOKENS = ["<tool>", "<t>"]
TEXT = "call <tool> and <t>!"
IDS = torch.tensor([[9, 261, 77, 262, 12, 200, 33, 8]])
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adapter": ({"adapter": LORA}, {}),
    "tied": ({"adapter": LORA}, {"tie_word_embeddings": True}),
    "unused rows": ({"adapter": LORA}, {"vocab_size": 270}),
    "full": ({}, {}),
    "full, tied": ({}, {"tie_word_embeddings": True}),
}
"""Name -> the recipe's `model`, and the base's configuration."""
ADAPTERS = ["adapter", "tied", pytest.param("unused rows", marks=pytest.mark.soak)]
FULL = ["full", pytest.param("full, tied", marks=pytest.mark.soak)]


class _Runs(dict[str, Path]):
    """A finished run of each kind, trained when a test asks for it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self._factory = factory

    def __missing__(self, kind: str) -> Path:
        model, base = KINDS[kind]
        folder = self._factory.mktemp("run")
        self[kind] = finished_run(folder, {**model, "add_tokens": TOKENS}, num_hidden_layers=1, **base)
        return self[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> _Runs:
    return _Runs(tmp_path_factory)


def trained_logits(run: Path | str) -> torch.Tensor:
    """As tailor itself computes them."""
    with torch.no_grad():
        logits: torch.Tensor = load_run(str(run)).model(IDS).logits
    return logits


def plain_logits(folder: Path | str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits
    return logits


def moved_rows(run: Path) -> float:
    """How far training moved the new rows, relative to their length: `finished_run` uses them in no row, so weight decay
    and the head's softmax move them."""
    network = load_run(str(run)).model
    network = network.get_base_model() if hasattr(network, "get_base_model") else network
    after = network.get_output_embeddings().weight[261:263]
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "base")
    head = AutoModelForCausalLM.from_pretrained(run.parent / "base").lm_head.weight
    before = torch.stack([head[tokenizer(token).input_ids].mean(0) for token in TOKENS])
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("kind", [*ADAPTERS, *FULL])
def test_the_export_has_the_logits_of_the_run(kind: str, runs: _Runs, tmp_path: Path) -> None:
    """Merged, or the model itself, with plain transformers; and its tokenizer reads the tokens."""
    weights = "merged" if KINDS[kind][0] else "model"
    assert moved_rows(runs[kind]) > 0.01, "control: the rows were trained"
    assert main(["export", str(runs[kind]), "--to", str(tmp_path / "out"), "--weights", weights]) == 0
    expected = trained_logits(runs[kind])
    torch.testing.assert_close(plain_logits(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == expected.shape[-1] == KINDS[kind][1].get("vocab_size", 263)
    assert config["tie_word_embeddings"] == bool(KINDS[kind][1].get("tie_word_embeddings"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert [one for one in ids if one > 260] == [261, 262]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_adapter_loads_with_plain_peft(kind: str, runs: _Runs, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    assert main(["export", str(runs[kind]), "--to", str(tmp_path / "out"), "--weights", "adapter"]) == 0
    with torch.no_grad():
        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(theirs, trained_logits(runs[kind]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*ADAPTERS, *FULL])
def test_a_checkpoint_is_exported_as_the_run_would_be(kind: str, runs: _Runs, tmp_path: Path) -> None:
    last = max((runs[kind] / "checkpoints").iterdir())
    assert main(["export", str(last), "--to", str(tmp_path / "out")]) == 0
    made = trained_logits(tmp_path / "out")
    torch.testing.assert_close(made, trained_logits(runs[kind]), rtol=1e-5, atol=1e-5)
    if KINDS[kind][0]:
        assert main(["merge", str(tmp_path / "out"), "--to", str(tmp_path / "merged")]) == 0
        torch.testing.assert_close(plain_logits(tmp_path / "merged"), made, rtol=1e-5, atol=1e-5)


@pytest.mark.soak  # the import alone takes seconds
def test_sentence_transformers_reads_the_tokens(runs: _Runs, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    run = tmp_path / "run"
    shutil.copytree(runs["adapter"], run, ignore=shutil.ignore_patterns("adapter"))
    with Publication(Store(str(run)), "adapter") as made:
        for path in (runs["adapter"] / "adapter").iterdir():
            if path.name != "COMMIT":
                shutil.copy(path, made.folder)
        Embedding(dimension=64, projection=False, max_length=128).write(made.folder, None)
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--as", "sentence-transformers"]) == 0
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode([TEXT])
    assert np.abs(theirs - load_embedder(str(run)).encode([TEXT])).max() <= 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--as", "ollama", "--weights", "adapter"], "new tokens (model.add_tokens)"),
        (["average"], "has trained rows of new tokens"),
    ],
    ids=["ollama", "average"],
)
def test_what_cannot_read_the_adapter_is_refused(
    words: list[str], message: str, runs: _Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs["adapter"])
    parts = [run, run] if words[0] == "average" else [run]
    assert main([words[0], *parts, "--to", str(tmp_path / "out"), *words[1:]]) == 2
    assert message in capsys.readouterr().err


def test_answers_with_and_without_the_adapter(runs: _Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(runs["adapter"]), "--prompt", TEXT, "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["prompt"] == TEXT
    loaded = load_run(str(runs["tied"]))
    assert 261 in loaded.prompt_ids([{"role": "user", "content": TEXT}])
    with torch.no_grad(), loaded.without_adapter():
        off = loaded.model(IDS).logits
    assert (off - trained_logits(runs["tied"])).norm() > 0.01


def test_an_altered_record_of_the_tokens_is_found(
    runs: _Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(runs["adapter"] / "adapter", tmp_path / "adapter"))
    (folder / "COMMIT").unlink()
    adapter = json.loads((folder / "base.json").read_text())
    assert adapter["add_tokens"] == TOKENS
    (folder / "base.json").write_text(json.dumps({**adapter, "add_tokens": []}))
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    assert "does not fit its base" in capsys.readouterr().err
