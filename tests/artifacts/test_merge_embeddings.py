"""The merge of a model that only embeds is judged by its embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.artifacts import verify_embeddings
from tailor.artifacts.load_embedder import load_embedder
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.merge import merge
from tailor.artifacts.verify import TEXTS
from tailor.artifacts.verify_embeddings import EmbeddingFigures
from tailor.cli.main import main
from tailor.cli.show import next_commands
from tailor.errors import ModelError
from tailor.models.embedding.pooling import new_projection
from tailor.models.embedding.settings import Embedding
from tailor.store import Store
from tailor.store.publication import Publication
from tests.helpers.adapters import random_adapter
from tests.helpers.models import tiny_llama

PLAN = {
    "tokens_url": "memory://none",
    **dict.fromkeys(("fingerprint", "train_fingerprint"), "x"),
    "frozen_dtype": "float32",
    "precision": "fp32",
    "batch_size": None,
    "batch_tokens": None,
    **dict.fromkeys(("max_length", "workers", "accumulation", "micro_batch_size", "steps_per_epoch"), 1),
    **dict.fromkeys(("tokens_per_epoch", "supervised_tokens_per_epoch"), 1),
}


def embedding_run(folder: Path, mode: str = "embedding", size: float = 0.05, **settings: Any) -> Path:
    """A run whose adapter embeds, with a projection."""
    base = tiny_llama(folder / "base")
    run = folder / "run"
    with Publication(Store(str(run)), "adapter") as made:
        random_adapter(made.folder, base, size=size)
        Embedding(dimension=16, projection=True, max_length=128, **settings).write(
            made.folder, new_projection(64, 16, seed=3).state_dict()
        )
    method = {"name": "gritlm", "mode": mode, "projection": 16}
    (run / "plan.json").write_text(json.dumps({**PLAN, "model": {"path": str(base)}, "method": method}))
    (run / "recipe.yaml").write_text("model: {path: base}\n")
    return run


def test_embeddings_are_compared(tmp_path: Path) -> None:
    run = embedding_run(tmp_path)
    merged = merge(str(run), str(tmp_path / "whole"))
    figures = merged.figures
    assert isinstance(figures, EmbeddingFigures)
    assert figures.error < 1e-5
    assert figures.adapter_error > 0.1
    one, other = (load_embedder(url).encode(TEXTS) for url in (str(run), merged.url))
    assert np.abs(one - other).max() < 1e-5
    rounded = merge(str(run), str(tmp_path / "rounded"), dtype="bfloat16").figures
    assert isinstance(rounded, EmbeddingFigures)
    other = load_embedder(str(tmp_path / "rounded")).encode(TEXTS)
    assert 1e-4 < rounded.error < verify_embeddings.TOLERANCE / 2, "bf16 is allowed"
    assert rounded.min_cosine > 0.9999
    record = json.loads((tmp_path / "rounded" / "merge.json").read_text())
    assert record["verification"]["check"] == "embeddings"
    both = merge(str(embedding_run(tmp_path / "both", "unified")), str(tmp_path / "unified")).figures
    assert both.check == "logits", "the control: it generates too"


@pytest.mark.parametrize("size", [0.05, 0.002])
def test_a_merge_with_other_embeddings_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    run = embedding_run(tmp_path, size=size)
    product = LoraAdapter.product
    with monkeypatch.context() as spoiled:
        spoiled.setattr(LoraAdapter, "product", lambda self, module: 0.2 * product(self, module))
        with pytest.raises(
            ModelError, match="its embeddings differ from those of base and adapter as trained"
        ):
            merge(str(run), str(tmp_path / "wrong"))
    assert not (tmp_path / "wrong").exists()
    merge(str(run), str(tmp_path / "right"))


def test_the_layout_is_checked_before_the_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = embedding_run(tmp_path, pooling="weightedmean")
    monkeypatch.setattr("tailor.export.folder.merge_into", lambda *_: pytest.fail("merged first"))
    words = [str(run), "--to", str(tmp_path / "out"), "--as", "sentence-transformers"]
    assert main(["export", *words]) == 2
    assert "method.pooling: weightedmean cannot be exported" in capsys.readouterr().err


def test_the_next_commands_are_those_of_the_mode(tmp_path: Path) -> None:
    run = Store(str(embedding_run(tmp_path)))
    assert next_commands(run)[0] == f"tailor search {run.url} texts.jsonl"
    unified = Store(str(embedding_run(tmp_path / "unified", "unified")))
    assert next_commands(unified)[0].startswith(("tailor generate", "tailor chat"))
