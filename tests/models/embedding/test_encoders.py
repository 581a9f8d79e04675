"""Encoders: a published model embeds as in sentence-transformers, and its texts do not depend on each other."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.artifacts.load import load_run
from tailor.artifacts.load_embedder import load_embedder
from tailor.encode.published_embedder import differing
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError, ModelError
from tailor.plan import encoders
from tests.helpers.encoders import COMMON, KINDS, LONGEST, POSITIONS, publish, tiny_encoder

TEXTS = ["the sea", " a house", "\nx", "été, 日本", "one of many words " * 9, "b" * 40, "1 2 3"]
STREAMS = set(KINDS) - {"mpnet"}
"""Encoders that call transformers' attention interface."""


def theirs(folder: Path, prompt: str | None = None) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found: np.ndarray = model.encode(TEXTS, prompt=prompt)
    return found


SELDOM = [pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS if kind not in COMMON]


@pytest.mark.parametrize("kind", [*COMMON, *SELDOM])
def test_a_published_encoder_embeds_as_in_sentence_transformers(kind: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, kind)
    ours = load_embedder(str(folder))
    assert ours.model.layout == ("stream" if kind in STREAMS else "rows")
    assert (ours.settings.pooling, ours.settings.normalize, ours.max_length) == ("mean", True, LONGEST)
    plain, queries = ours.encode(TEXTS), ours.encode(TEXTS, "query: ")
    assert ours.truncated > 0
    assert np.abs(plain - theirs(folder)).max() <= 1e-5
    assert np.abs(queries - theirs(folder, "query: ")).max() <= 1e-5
    assert np.abs(queries - plain).max() > 1e-2, "the control: the prompt matters"
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    assert np.abs(plain - alone).max() <= 1e-5


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": True},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": "weightedmean", "modules": ()},
    ],
)
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_every_pooling(kind: str, pooling: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, kind, **pooling)
    ours = load_embedder(str(folder))
    for prompt in (None, "query: "):
        assert np.abs(ours.encode(TEXTS, prompt) - theirs(folder, prompt)).max() <= 1e-5


def test_special_tokens_and_positions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the equality above."""
    folder = tiny_encoder(tmp_path, "roberta")
    expected = theirs(folder)
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "first_position", lambda config: 0)
        assert np.abs(load_embedder(str(folder)).encode(TEXTS) - expected).max() > 1e-2
    around = Tokenizer._around
    monkeypatch.setattr(Tokenizer, "_around", lambda self: (around(self)[0], []))
    assert np.abs(load_embedder(str(folder)).encode(TEXTS) - expected).max() > 1e-2


def test_a_default_prompt_is_used(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": {"passage": "passage: "}, "default_prompt_name": "passage"}))
    assert np.abs(load_embedder(str(folder)).encode(TEXTS) - theirs(folder)).max() <= 1e-5


def test_a_checkpoint_of_a_masked_language_model_is_a_base(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "a", head=True)
    assert np.abs(load_embedder(str(folder)).encode(TEXTS) - theirs(folder)).max() <= 1e-5


def test_a_damaged_encoder_is_rejected(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_encoder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, for example encoder\.layer\.1\.output"):
        load_embedder(str(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modules": ("Dense", "Normalize")}, "the module Dense"),
        ({"pooling_mode": "max"}, "max pooling"),
        ({"include_prompt": False}, "include_prompt: false"),
        ({"pooling_mode": ["cls", "mean"]}, "cls\\+mean pooling"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls\\+mean pooling"),
        ({"modules": ("Normalize", "Dense")}, "the module Dense"),
        (
            {"modules": ("Normalize", "Normalize")},
            "the modules Transformer, Pooling, Normalize, Normalize in this order",
        ),
    ],
)
def test_what_tailor_does_not_compute_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """As an embedder, and as a base to train."""
    publish(tiny_encoder(tmp_path, published=False), **changes)
    refused(tmp_path, reason)


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=f"has {reason} in its sentence-transformers files"):
        load_embedder(str(folder))
    with pytest.raises(ModelError, match=f"has {reason} in its sentence-transformers files"):
        differing(str(folder), None, "mean", True)


MODULES_OF: dict[str, list[str]] = {
    "the modules Transformer, Normalize, Pooling in this order": ["Transformer", "Normalize", "Pooling"],
    "the modules Transformer in this order": ["Transformer"],
    "the module own.Pooling": ["Transformer", "own.Pooling"],
    "the module own.Normalize": ["Transformer", "Pooling", "own.Normalize"],
    "the module Transformer in the folder 0_Transformer": ["0_Transformer", "Pooling"],
}


@pytest.mark.parametrize("reason", MODULES_OF)
def test_other_modules_are_refused(reason: str, tmp_path: Path) -> None:
    """Normalization before the pooling, modules of other packages, and a model in another folder."""
    folder = tiny_encoder(tmp_path)
    folders = {"Pooling": "1_Pooling", "0_Transformer": "0_Transformer"}
    kinds = [
        {
            "path": folders.get(name, ""),
            "type": name if "." in name else f"sentence_transformers.models.{name.removeprefix('0_')}",
        }
        for name in MODULES_OF[reason]
    ]
    (folder / "modules.json").write_text(json.dumps(kinds))
    refused(folder, reason)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config_sentence_transformers.json", "truncate_dim", 16),
        ("sentence_bert_config.json", "do_lower_case", True),
        ("sentence_roberta_config.json", "do_lower_case", True),
        ("sentence_bert_config.json", "transformer_task", "fill-mask"),
        ("sentence_bert_config.json", "module_output_name", "sentence_embedding"),
        (
            "sentence_bert_config.json",
            "modality_config",
            {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        ),
        ("sentence_bert_config.json", "modality_config", {"text": 3}),
    ],
    ids=str,
)
def test_other_settings_are_refused(file: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)
    if file != "config_sentence_transformers.json":
        (folder / "sentence_bert_config.json").unlink()
    (folder / file).write_text(json.dumps({key: value}))
    refused(folder, f"{key}: {re.escape(json.dumps(value).strip(chr(34)))}")


def test_the_settings_that_sentence_transformers_itself_writes_are_not_refused(tmp_path: Path) -> None:
    """The control of the refusals."""
    from sentence_transformers import SentenceTransformer

    folder = tiny_encoder(tmp_path / "a")
    SentenceTransformer(str(folder), device="cpu", local_files_only=True).save_pretrained(
        str(tmp_path / "b"), create_model_card=False
    )
    assert "modality_config" in (tmp_path / "b" / "sentence_bert_config.json").read_text()
    ours = load_embedder(str(tmp_path / "b"))
    assert ours.max_length == LONGEST
    assert np.abs(ours.encode(TEXTS) - theirs(folder)).max() <= 1e-5


@pytest.mark.parametrize("file", ["sentence_roberta_config.json", "sentence_xlnet_config.json", ""])
def test_the_maximum_length_is_that_of_sentence_transformers(file: str, tmp_path: Path) -> None:
    """Of a file that older versions named after the model, or of the tokenizer if no file has one."""
    folder, length = tiny_encoder(tmp_path), 20
    (folder / "sentence_bert_config.json").unlink()
    if file:
        (folder / file).write_text(json.dumps({"max_seq_length": length}))
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings = {**settings, "model_max_length": length}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, expected = load_embedder(str(folder)), theirs(folder)
    assert ours.max_length == length
    assert np.abs(ours.encode(TEXTS) - expected).max() <= 1e-5
    ours.max_length = POSITIONS
    assert np.abs(ours.encode(TEXTS) - expected).max() > 1e-3, "the control: a text is longer"


def test_an_encoder_without_sentence_transformers_files_is_no_embedder(tmp_path: Path) -> None:
    tiny_encoder(tmp_path, published=False)
    with pytest.raises(ModelError, match="is not an embedding model"):
        load_embedder(str(tmp_path))


def test_an_encoder_does_not_generate(tmp_path: Path) -> None:
    tiny_encoder(tmp_path)
    with pytest.raises(ModelError, match="is an encoder \\(bert\\), which embeds texts and cannot generate"):
        load_run(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_blank_and_long_texts(kind: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, kind)
    ours = load_embedder(str(folder))
    for blank in ("", " \n"):
        with pytest.raises(DataError, match="text 1 is empty"):
            ours.encode(["a", blank], "query: ")
    with pytest.raises(DataError, match="leaves no room"):
        ours.encode(["a"], "long " * 60)
    ours.max_length = POSITIONS
    assert np.isfinite(ours.encode(["b " * 200])).all()


@pytest.mark.parametrize(
    ("pooling", "note"),
    [
        ({}, ""),
        (
            {"modules": ()},
            "mean pooling without normalization; the recipe trains it with method.pooling: mean",
        ),
        ({"pooling_mode": "cls"}, "cls pooling with normalization"),
    ],
)
def test_a_base_with_another_pooling_is_reported(pooling: dict[str, Any], note: str, tmp_path: Path) -> None:
    found = differing(str(tiny_encoder(tmp_path, **pooling)), None, "mean", True)
    assert note in found
    assert bool(found) == bool(note)


@pytest.mark.soak
def test_minilm_embeds_as_in_sentence_transformers() -> None:
    """MINILM: folder of sentence-transformers/all-MiniLM-L6-v2."""
    if (folder := os.environ.get("MINILM")) is None:
        pytest.skip("MINILM is not set")
    ours = load_embedder(folder)
    assert (ours.settings.pooling, ours.dimension, ours.max_length) == ("mean", 384, 256)
    for prompt in (None, "query: "):
        assert np.abs(ours.encode(TEXTS, prompt) - theirs(Path(folder), prompt)).max() <= 1e-5
