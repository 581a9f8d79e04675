"""Answers from key-values that come from embedding: the same as without them, where that is promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save

from tailor.artifacts.load_embedder import load_with_embedder
from tailor.cli.main import main
from tailor.errors import DataError, ModelError, TailorError
from tailor.evaluate import generation
from tailor.evaluate.models import find_model
from tailor.evaluate.retrieved_answers import PassageReader, Retrieved, open_index
from tailor.evaluate.reuse import TURNS
from tailor.models.embedding.settings import Embedding
from tests.helpers.families import FAMILIES
from tests.helpers.models import tiny_llama

PASSAGES = ["Linen is sewn with a sharp needle.", "Wool is ironed with steam.", "Silk comes from moths."]
KEYS = ("--keep", "text", "--key-values")
CHANGES: list[Callable[[dict[str, torch.Tensor]], Any]] = [
    lambda tensors: tensors.update({name: one[:1] for name, one in tensors.items() if "ids" not in name}),
    lambda tensors: tensors.update({name: one[:, :1] for name, one in tensors.items() if "ids" not in name}),
    lambda tensors: tensors.update(
        {name: one[..., :8] for name, one in tensors.items() if "ids" not in name}
    ),
    lambda tensors: tensors.update(
        {name: one * float("nan") for name, one in tensors.items() if "keys" in name}
    ),
    lambda tensors: tensors.update({name: one.long() for name, one in tensors.items()}),
    lambda tensors: tensors.update({name: one[:, None] for name, one in tensors.items() if "ids" in name}),
    lambda tensors: tensors.update(
        {f"{(int(name[0]) + 1) % 3 + 1}{name[1:]}": one for name, one in list(tensors.items())}
    ),
]
"""Damage to key-values that a safetensors file cannot show: other layers, heads, sizes, types, and those of another row."""
NEW, QUERY = 8, "Which needle for linen?"


def make_model(folder: Path, attention: Any) -> Path:
    tiny_llama(folder)
    settings = Embedding(attention=attention, dimension=64, max_length=128)
    settings.write(folder, None)
    return folder


@pytest.fixture(scope="module", params=["bidirectional", "causal", "bidirectional_text"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The attention, a model and the index that it wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model(folder / "model", request.param)
    index = make_index(folder, *KEYS)
    return request.param, folder / "model", index


def make_index(folder: Path, *options: str, name: str = "index") -> Path:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    to = folder / f"{name}.parquet"
    assert main(["embed", str(folder / "model"), str(rows), str(to), *(options or ("--keep", "text"))]) == 0
    return to


def reader(model: Path, index: Path, reuse: str) -> tuple[PassageReader, Any, Any]:
    loaded, embedder = load_with_embedder(str(model))
    opened = open_index(str(index), find_model(str(model)), reuse)
    return PassageReader(loaded, embedder, opened, reuse), loaded, embedder


@torch.no_grad()
def by_hand(embedder: Any, retrieved: Retrieved, attention: str, *, together: bool = False) -> list[int]:
    """Greedily, one forward pass over the whole sequence per token, with the mask of what is promised and no cache.

    together: all texts attend to the earlier ones, and the positions count on.
    """
    base, ids = embedder.model.base, list(retrieved.ids)
    encoder = embedder._encoder
    prefix = [
        *encoder.format.prefix(encoder.tokenizer),
        *encoder.tokenizer.encode(encoder.format.before(None)),
    ]
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    for _ in range(NEW):
        count, begin = len(ids), 0
        visible, positions = torch.ones(count, count).tril().bool(), torch.arange(count)
        for part in retrieved.embedded:
            end = begin + len(part)
            if not together:
                visible[begin:end, :begin] = False
                positions[begin:end] -= begin
            first = {"bidirectional": begin, "bidirectional_text": begin + len(prefix), "causal": end}[
                attention
            ]
            visible[first:end, begin:end] = True
            begin = end
        mask = torch.zeros(1, 1, count, count).masked_fill(~visible, torch.finfo(torch.float32).min)
        out = base(
            input_ids=torch.tensor([ids]), attention_mask=mask, position_ids=positions[None], use_cache=False
        )
        ids.append(int(out.logits[0, -1].argmax()))
    base.set_attn_implementation(before)
    return generation.before_stop(ids[-NEW:], (2,))


@pytest.mark.parametrize("reuse", ["document", "query"])
def test_the_answer_is_that_of_one_pass_over_the_whole_sequence(
    made: tuple[str, Path, Path], reuse: str
) -> None:
    attention, model, index = made
    own, loaded, embedder = reader(model, index, reuse)
    retrieved = own.retrieve(QUERY, None)
    found = own.answer(retrieved, max_new_tokens=NEW)
    assert found == by_hand(embedder, retrieved, attention)
    (plain,) = generation.generate(
        loaded.model, [retrieved.ids], max_new_tokens=NEW, stop_ids=loaded.stop_ids, batch_size=1, pad_id=0
    )
    assert (plain == found) == (attention == "causal"), (
        "the control: plain generation reads the text causally"
    )


def test_two_texts_do_not_attend_to_each_other(made: tuple[str, Path, Path]) -> None:
    """In each order: as one pass in which both have positions from 0. The control reads them as one text."""
    attention, model, index = made
    answers = []
    for reuse in ("document-query", "query-document"):
        own, _, embedder = reader(model, index, reuse)
        retrieved = own.retrieve(QUERY, None)
        answers.append(own.answer(retrieved, max_new_tokens=NEW))
        assert answers[-1] == by_hand(embedder, retrieved, attention)
        assert answers[-1] != by_hand(embedder, retrieved, attention, together=True), "the control"
    assert answers[0] != answers[1]


def test_embeddings_and_key_values_come_from_one_pass(made: tuple[str, Path, Path]) -> None:
    """The embeddings are those of `tailor embed`, and the key-values of a text do not depend on its batch."""
    _, model, index = made
    plain = make_index(index.parent, name="plain")
    left, right = (np.array(pq.read_table(file).column("embedding").to_pylist()) for file in (index, plain))
    assert np.abs(left - right).max() < 1e-5
    _, _, embedder = reader(model, index, "document")
    (alone,) = embedder.encode_with_key_values(PASSAGES[1:2])[1]
    together = embedder.encode_with_key_values(PASSAGES)[1]
    assert torch.equal(alone.ids, together[1].ids)
    assert torch.allclose(alone.keys, together[1].keys, atol=1e-5)
    assert not torch.allclose(alone.values[:, :, :5], together[0].values[:, :, -5:], atol=1e-2), "the control"
    with pytest.raises(DataError, match="needs the key-values of the passages"):
        open_index(str(plain), find_model(str(model)), "document")


def test_a_bad_index_has_a_clear_error(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "causal")
    index = make_index(tmp_path, *KEYS)
    folder = tmp_path / "index.parquet.key-values"

    def read() -> None:
        own, _, _ = reader(model, index, "document")
        own.retrieve(QUERY, None)

    def problem() -> str:
        with pytest.raises(TailorError) as caught:
            read()
        return f"{caught.value.message} hint: {caught.value.hint}"

    part, about = folder / "part-000000.safetensors", folder / "index.json"
    whole = part.read_bytes()
    for damaged in (whole[:100], b""):
        part.write_bytes(damaged)
        assert "part-000000.safetensors is missing or damaged" in problem()
    part.unlink()
    assert "--key-values" in problem()
    part.write_bytes(whole)
    text = about.read_text()
    about.write_text(text.replace('"identity": "', '"identity": "0'))
    assert "are of other embeddings than index.parquet" in problem()
    about.write_text("{}")
    assert "is damaged: it has no identity" in problem()
    about.write_text(text)
    read()
    for change in CHANGES:
        tensors = load(whole)
        change(tensors)
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        assert "are not those of its text" in problem() or "is missing or damaged" in problem()
    part.write_bytes(whole)
    (tmp_path / "model").rename(tmp_path / "moved")
    tiny_llama(model, seed=1)
    Embedding(attention="causal", dimension=64, max_length=128).write(model, None)
    assert "has embeddings of" not in problem(), "the control: the same folder"
    for reuse in ("nothing", "document"):
        with pytest.raises(DataError, match="has changed since"):
            open_index(str(index), find_model(str(model)), reuse)
        open_index(str(index), find_model(str(tmp_path / "moved")), reuse)
    rows = tmp_path / "rows.jsonl"
    without = make_index(tmp_path, "--dtype", "float16", name="without")
    with pytest.raises(DataError, match="has no column text, which was embedded"):
        open_index(str(without), find_model(str(model)), "nothing")
    with pytest.raises(DataError, match="was not written by `tailor embed`"):
        open_index(str(rows), find_model(str(model)), "nothing")


def test_a_window_that_is_too_short_is_rejected(tmp_path: Path) -> None:
    """Key-values beyond a sliding window would be read by tokens that did not attend to them in training."""
    FAMILIES["mistral"].make(tmp_path / "model", sliding_window=100)
    Embedding(attention="causal", dimension=64, max_length=128).write(tmp_path / "model", None)
    index = make_index(tmp_path, *KEYS)
    own, _, _ = reader(tmp_path / "model", index, "document")
    retrieved = own.retrieve(QUERY, None)
    with pytest.raises(ModelError, match="it attends to 100 tokens only"):
        own.answer(retrieved, max_new_tokens=200)


def test_the_command_answers_with_the_nearest_passage(
    made: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, index = made
    command = ["generate", str(model), "--retrieve", str(index), "--max-new-tokens", "4"]
    for reuse in TURNS:
        out = tmp_path / f"{reuse}.jsonl"
        options = ["--prompt", QUERY, "--reuse", reuse, "--output", str(out)]
        assert main([*command, *options]) == 0
        row = json.loads(out.read_text())
        assert PASSAGES[row["passage"]["row"] - 1] == row["passage"]["text"]
        assert list(row) == ["prompt", "passage", "answer"]
    assert "truncated" not in capsys.readouterr().err
    assert main([*command, "--prompt", "wool " * 60]) == 0
    assert "1 text was longer than the model's maximum length and was truncated" in capsys.readouterr().err
    for options, message in (
        (["--plain"], "--plain has no effect with --retrieve"),
        (["--system", "Be short."], "--system has no effect with --retrieve"),
    ):
        assert main([*command, "--prompt", QUERY, *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["generate", str(model), "--prompt", QUERY, "--reuse", "query"]) == 2
    assert "--reuse has no effect without --retrieve" in capsys.readouterr().err
