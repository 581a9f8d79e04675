"""The sentence-transformers export: reloaded there, every text has the same embedding as in tailor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.errors import ModelError
from tailor.export.forms import sentence_transformers
from tailor.models.embedding.pooling import new_projection
from tailor.models.embedding.settings import Embedding
from tailor.store import Store
from tailor.store.publication import Publication
from tests.helpers.collections import embedding_model
from tests.helpers.models import CHATML, byte_tokenizer
from tests.helpers.plans import LORA
from tests.helpers.tokenizers import bpe_tokenizer, sentencepiece_tokenizer
from tests.helpers.trained_runs import finished_run

ASK = "Find the passage:"
TEXTS = [*sentence_transformers.PROBES, "one of many words " * 20]


@pytest.fixture(scope="module")
def embedding_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run that was trained for embeddings."""
    run = finished_run(tmp_path_factory.mktemp("embedding"), {"adapter": LORA})
    with Publication(Store(str(run)), "adapter") as made:
        for path in (run / "adapter").iterdir():
            if path.name != "COMMIT":
                shutil.copy(path, made.folder)
        settings = Embedding(dimension=16, projection=True, max_length=128)
        settings.write(made.folder, new_projection(64, 16, seed=3).state_dict())
    return run


def theirs(folder: Path, **prompt: str) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    found: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **prompt)
    return found


def test_the_export_gives_the_same_embeddings(embedding_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["--as", "sentence-transformers", "--query-instruction", ASK, "--name", "shop"]
    assert main(["export", str(embedding_run), "--to", str(folder), *words]) == 0
    ours = load_embedder(str(embedding_run))
    queries, passages = ours.encode(TEXTS, ASK), ours.encode(TEXTS)
    assert np.abs(theirs(folder, prompt_name="query") - queries).max() <= 1e-6
    assert np.abs(theirs(folder) - passages).max() <= 1e-6
    assert np.abs(queries - passages).max() > 0.05, "the control: the instruction matters"
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("is_causal") is False
    (folder / "config.json").write_text(json.dumps(config))
    assert np.abs(theirs(folder) - passages).max() > 0.05, (
        "the control: with causal attention they are others"
    )
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == (
        "sentence-transformers",
        "sentence-similarity",
    )
    assert 'SentenceTransformer("PATH")' in card.text
    assert "&lt;" not in card.text
    shown = json.loads(card.text.split("```json\n")[1].split("```")[0])
    assert shown == {
        "document": "<s><|embed|>\n",
        "query": "<s><|user|>\nFind the passage\n<|embed|>\n",
    }
    assert "lengths of embeddings" not in card.text, "float32 weights"
    assert not (folder / "embedding.json").exists()


def test_rounded_lengths_are_said(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM

    folder = embedding_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    form = sentence_transformers.SentenceTransformers()
    sentence_transformers.write(folder, query_instruction=None)
    assert "normalizes in bfloat16" in form.card(folder).use

    def error(**options: Any) -> float:
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)
        return float(np.abs(np.linalg.norm(model.encode(TEXTS).astype(np.float64), axis=1) - 1).max())

    assert 1e-4 < error() < 4e-3
    assert error(torch_dtype="float32") < 1e-6, "as the card says"


@pytest.mark.parametrize(
    ("make", "pooling", "melts"),
    [
        (byte_tokenizer, "cls", False),
        (partial(bpe_tokenizer, pattern=None), "lasttoken", True),
        (sentencepiece_tokenizer, "mean", True),
    ],
)
def test_every_kind_of_tokenizer(
    tmp_path: Path, make: Callable[..., Path], pooling: str, melts: bool
) -> None:
    """A text after its prompt has the same tokens as alone, also where the tokenizer would merge the two."""
    from tokenizers import Tokenizer

    folder = embedding_model(tmp_path / "model", pooling=pooling, model={"vocab_size": 800}, normalize=False)
    make(folder, chat_template=CHATML)
    shutil.copytree(folder, tmp_path / "out")
    sentence_transformers.write(tmp_path / "out", query_instruction=ASK)
    ours = load_embedder(str(folder))
    for prompt, instruction in (("document", None), ("query", ASK)):
        expected = ours.encode(TEXTS, instruction)
        assert (
            np.abs(theirs(tmp_path / "out", prompt_name=prompt) - expected).max()
            <= 1e-6 * np.abs(expected).max()
        )
    before, after = (
        [
            one.ids
            for one in Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).encode_batch(
                [f"<|embed|>\n{text}" for text in TEXTS]
            )
        ]
        for name in ("model", "out")
    )
    assert (before != after) == melts, "the control: untouched, it would give other tokens"


def test_what_the_layout_cannot_represent_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = embedding_model(tmp_path / "weighted", pooling="weightedmean")
    with pytest.raises(ModelError, match="sentence-transformers also counts the prompt's positions"):
        sentence_transformers.write(weighted, query_instruction=None)
    monkeypatch.setattr(sentence_transformers, "_configure", lambda *_: None)
    with pytest.raises(
        ModelError, match=r"plain transformers computes different embeddings from .* they differ by 0\."
    ):
        sentence_transformers.write(embedding_model(tmp_path / "model"), query_instruction=None)


def test_errors_are_reported(
    run: Path, embedding_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--to", str(tmp_path / "out")]
    for made, words, code, text in (
        (
            run,
            ["--as", "sentence-transformers"],
            2,
            (
                f"{run}/adapter is not an embedding model: it has no embedding.json\n"
                "  hint: give a run that was trained with method gritlm"
            ),
        ),
        (
            embedding_run,
            ["--as", "sentence-transformers", "--weights", "adapter"],
            2,
            (
                "--as sentence-transformers needs a full model: an adapter cannot store that the decoder uses bidirectional attention\n"
                "  hint: remove --weights"
            ),
        ),
        (
            run,
            ["--query-instruction", "x"],
            1,
            "--query-instruction has no effect with --as huggingface; only --as sentence-transformers uses it",
        ),
    ):
        assert main(["export", str(made), *to, *words]) == code
        assert capsys.readouterr().err.endswith(f"tailor: {text}\n")
    assert not (tmp_path / "out").exists()


def test_other_exports_keep_the_projection(embedding_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(embedding_run), "--to", str(tmp_path / "out"), "--weights", "merged"]) == 0
    ours: Any = load_embedder(str(embedding_run)).encode(TEXTS, ASK)
    assert np.abs(load_embedder(str(tmp_path / "out")).encode(TEXTS, ASK) - ours).max() < 1e-5
