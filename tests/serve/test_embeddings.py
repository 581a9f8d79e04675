"""An embedder and a reranker that are served together answer as `tailor embed` and `tailor score`, and refuse long texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tailor.artifacts.cross_encoder import CrossEncoderModel
from tailor.artifacts.load_embedder import load_embedder
from tests.helpers import serving
from tests.helpers.collections import embedding_model
from tests.helpers.encoders import POSITIONS, tiny_cross_encoder
from tests.helpers.serving import Served

LENGTH = 32
"""The longest text that the embedder reads, in tokens: 31 bytes after its BOS, or fewer after an instruction."""
LONG = "a long text, which the model cannot read to its end"
DOCUMENTS = ["of the sea", "a stone", "a house at the sea"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    embedder = embedding_model(folder / "vectors", max_length=LENGTH)
    return {"vectors": str(embedder), "scores": str(tiny_cross_encoder(folder / "scores"))}


@pytest.fixture(scope="module")
def served(models: dict[str, str]) -> Iterator[Served]:
    with serving.local(models) as found:
        yield found


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)


def test_what_they_support(client: openai.OpenAI) -> None:
    supports = {model.id: model.supports for model in client.models.list()}  # type: ignore[attr-defined]
    assert supports == {"vectors": ["chat", "completions", "embeddings"], "scores": ["rerank"]}
    for model, path, other in (("scores", "embeddings", "rerank"), ("vectors", "rerank", "embeddings")):
        body = {"embeddings": {"input": "a"}, "rerank": {"query": "q", "documents": ["a"]}}[path]
        with pytest.raises(openai.BadRequestError, match=f"does not support {path}; it supports .*{other}"):
            client.post(f"/{path}", body={"model": model, **body}, cast_to=object)


def test_embeddings(client: openai.OpenAI, models: dict[str, str]) -> None:
    texts = ["a", "of the sea"]
    expected = load_embedder(models["vectors"]).encode(texts).tolist()
    as_base64 = client.embeddings.create(model="vectors", input=texts)  # the client asks for base64
    as_floats = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert [one.embedding for one in as_base64.data] == [one.embedding for one in as_floats.data] == expected
    tokens = load_embedder(models["vectors"]).tokenize(texts)
    assert as_floats.usage.prompt_tokens == sum(len(one.input_ids) for one in tokens)
    short = client.embeddings.create(model="vectors", input="a", dimensions=8)
    assert len(short.data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError, match="64 dimensions"):
        client.embeddings.create(model="vectors", input="a", dimensions=65)


def test_rerank(served: Served, models: dict[str, str]) -> None:
    scores = CrossEncoderModel(models["scores"])([("sea", document) for document in DOCUMENTS])
    body: dict[str, Any] = {
        "model": "scores",
        "query": "sea",
        "documents": DOCUMENTS,
        "return_documents": True,
    }
    results = served.post("rerank", body).json()["results"]
    order = sorted(range(3), key=lambda at: -scores[at])
    assert [one["index"] for one in results] == order
    assert [one["relevance_score"] for one in results] == [scores[at] for at in order]
    assert [one["document"]["text"] for one in results] == [DOCUMENTS[at] for at in order]
    assert served.post("rerank", {**body, "top_n": 2}).json()["results"] == results[:2]


def test_a_text_that_is_too_long_to_embed(client: openai.OpenAI, models: dict[str, str]) -> None:
    embedder = load_embedder(models["vectors"])
    (tokens,) = embedder.tokenize([LONG])
    assert tokens.cut > 0
    message = (
        f"input.1 has {LENGTH + tokens.cut} tokens, and the model reads at most {LENGTH}; shorten it, or"
    )
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.embeddings.create(model="vectors", input=["a", LONG])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    cut = client.embeddings.create(model="vectors", input=["a", LONG], extra_body={"truncate": True})
    assert np.array_equal(np.float32([one.embedding for one in cut.data]), embedder.encode(["a", LONG]))
    assert cut.usage.prompt_tokens == len(embedder.tokenize(["a"])[0].input_ids) + LENGTH
    longest = LONG[: -tokens.cut]  # the control: it just fits
    assert client.embeddings.create(model="vectors", input=longest).usage.prompt_tokens == LENGTH


def test_a_document_that_is_too_long_to_rerank(served: Served, models: dict[str, str]) -> None:
    reranker = CrossEncoderModel(models["scores"])
    fits = "s" * (POSITIONS - 3 - 3)  # beside the query and [CLS], [SEP], [SEP]
    assert reranker.max_length == POSITIONS
    assert reranker.lengths([("sea", fits)]) == [POSITIONS]
    body = {"model": "scores", "query": "sea", "documents": ["a stone", fits + "s"]}
    refused = served.post("rerank", body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        400,
        "context_length_exceeded",
        "documents",
    )
    assert error["message"] == (
        "documents.1 with the query has 97 tokens, and the model reads at most 96; shorten it, or send truncate: true"
    )
    results = served.post("rerank", {**body, "truncate": True}).json()["results"]
    pairs = [("sea", document) for document in body["documents"]]
    assert {one["index"]: one["relevance_score"] for one in results} == dict(enumerate(reranker(pairs)))
    assert served.post("rerank", {**body, "documents": ["a stone", fits]}).status_code == 200
