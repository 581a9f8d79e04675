"""Batches in chunks give the gradient of the whole batch at once, in the memory of a chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tailor.data.facts import of_split
from tailor.data.grit_batches import GritBatch
from tailor.data.split import Split
from tailor.methods.gritlm import Gritlm
from tailor.methods.text_chunks import cut
from tailor.models.causal import CausalModel
from tailor.models.embedding import embedder
from tailor.models.embedding.attention import text_output
from tailor.models.embedding.embedder import embed
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.pooling import new_projection
from tailor.models.embedding.settings import Embedding
from tailor.plan.batches import BatchSpec
from tailor.spec.methods.base import StreamSizes
from tailor.spec.methods.gritlm import Gritlm as Spec
from tailor.spec.model import Model
from tests.helpers.embedding_stores import FORMAT, make_grit_store
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.passes import LiveBytes, OneWorker, gradient, micro_batches_of, relative

LORA = {"rank": 4, "alpha": 64, "dropout": 0.0}
ENGINES = ("gradcache", "chunk_checkpoint")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    tokens = make_grit_store(tmp_path_factory.mktemp("tokens"), queries=16, examples=12)
    return tokens.split("train")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def load(
    path: Path, *, checkpointing: bool = False, projection: int | None = None, **keys: Any
) -> CausalModel:
    model = load_model(
        Model.model_validate({"path": str(path), **keys}),
        activation_checkpointing=checkpointing,
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # it starts at zero, where nothing below it has a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    if projection is not None:
        model.projection = new_projection(64, projection, seed=0)
    model.train()
    return model


def spec(**keys: Any) -> Spec:
    return Spec(name="gritlm", temperature=0.05, **keys)


def batches_of(
    split: Split, group: int = 2, queries: int = 5, examples: int = 0, first: Any = "longest"
) -> Any:
    streams = StreamSizes(queries, examples, group, first=first)
    return of_split(split, BatchSpec(seed=0, max_length=64, pack=False, streams=streams))


def chunked(
    model: CausalModel, split: Split, keys: dict[str, Any], *, replays: bool = True, **plan: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient and the sums of the first step, by a method with these keys."""
    method, context = Gritlm(spec(**keys)), OneWorker(model, replays=replays, **plan)
    examples = 0 if keys.get("mode") == "embedding" else 5
    first = method.spec.streams.first
    batches = batches_of(split, keys.get("group_size", 2), examples=examples, first=first)
    work = micro_batches_of(method, context, batches, split)
    if keys.get("mode") == "generative":  # the same sequences as beside texts
        work = [one for one in work if one.batch.pool is None]
    method.backward(context, batches, batches.batch(0), work, 0.0)
    return gradient(model), context.sums


def texts_of(split: Split, batch: GritBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    examples = [split.example(int(index)) for index in batch.text_examples()]
    return [(example.input_ids, example.spans) for example in examples]


def plain(vectors: torch.Tensor, batch: GritBatch, temperature: float = 0.05) -> torch.Tensor:
    """The mean loss by PyTorch's own functions."""
    unit = normalize(vectors, dim=-1)
    scores = unit[: batch.queries] @ unit[batch.queries :].T / temperature
    return cross_entropy(scores, torch.arange(batch.queries) * batch.group)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("how", ["full", "lora", "checkpointing", "projection"])
def test_chunks_give_the_gradient_of_the_whole_batch(
    path: Path, split: Split, engine: str, group: int, how: str
) -> None:
    """5 queries with 1 or 4 passages: the last of the chunks of 3 is ragged."""
    keys = {"lora": {"adapter": LORA}, "checkpointing": {"adapter": LORA}}.get(how, {})
    projection = 16 if how == "projection" else None
    model = load(path, checkpointing=how == "checkpointing", projection=projection, **keys)
    method = {"mode": "embedding", "group_size": group, "engine": engine, "projection": projection}
    batch = batches_of(split, group).batch(0)
    assert batch.texts % 3
    whole = embed(model, Gritlm(spec(**method)).settings, lay_out_texts(texts_of(split, batch), model.layout))
    loss = plain(whole, batch)
    loss.backward()
    expected = gradient(model)
    found, sums = chunked(model, split, method)
    assert sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("side", ["queries", "passages"])
def test_the_embeddings_of_one_side_are_constants(path: Path, split: Split, engine: str, side: str) -> None:
    """The value of the loss stays; its gradient is that with the other side's embeddings detached."""
    model = load(path, adapter=LORA)
    method = {"mode": "embedding", "engine": engine, "embedding_gradients": side}
    batch = batches_of(split).batch(0)

    def by_torch(*, detached: bool) -> tuple[float, torch.Tensor]:
        whole = embed(
            model, Gritlm(spec(**method)).settings, lay_out_texts(texts_of(split, batch), model.layout)
        )
        constant = range(batch.queries, batch.texts) if side == "queries" else range(batch.queries)
        if detached:
            whole = torch.cat(
                [row[None].detach() if at in constant else row[None] for at, row in enumerate(whole)]
            )
        loss = plain(whole, batch)
        loss.backward()
        return float(loss.detach()), gradient(model)

    loss, expected = by_torch(detached=True)
    found, sums = chunked(model, split, method)
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative(found, expected) < 1e-5
    assert relative(by_torch(detached=False)[1], expected) > 0.1, "the control"


@pytest.mark.parametrize("engine", ENGINES)
def test_constant_texts_have_no_graph(
    path: Path, split: Split, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one passage for each query, the chunks of passages are embedded once and without a graph."""
    count = batches_of(split, 1).batch(0).queries
    model, calls = load(path, adapter=LORA), []

    def counted(model: Any, batch: Any, **options: Any) -> Any:
        calls.append((torch.is_grad_enabled(), batch.pool.text_index.tolist()))
        return text_output(model, batch, **options)

    monkeypatch.setattr(embedder, "text_output", counted)
    keys = {"mode": "embedding", "engine": engine, "group_size": 1}
    chunked(model, split, {**keys, "embedding_gradients": "queries"})
    assert {index for graph, indices in calls if graph for index in indices} == set(range(count))
    assert sorted(i for graph, indices in calls if not graph for i in indices if i >= count) == list(
        range(count, 2 * count)
    )
    calls.clear()
    chunked(model, split, keys)
    assert {index for graph, indices in calls if graph for index in indices} == set(range(2 * count)), (
        "the control"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_is_the_same_when_a_chunk_is_computed_again(
    path: Path, split: Split, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(path, adapter={**LORA, "dropout": 0.5})
    method = Gritlm(spec(mode="embedding", engine=engine))
    batches = batches_of(split)
    batch, context = batches.batch(0), OneWorker(model)
    vectors = torch.zeros(batch.texts, 64)
    for one in micro_batches_of(method, context, batches, split):
        own = context.forward(one.number, embed, method.settings, one.batch)
        vectors = vectors.index_copy(0, one.batch.pool.text_index, own)
    plain(vectors, batch).backward()
    expected = gradient(model)
    keys = {"mode": "embedding", "engine": engine}
    assert relative(chunked(model, split, keys)[0], expected) < 1e-6
    if engine == "chunk_checkpoint":  # it seeds within each chunk
        monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    other, _ = chunked(model, split, keys, replays=False)
    cosine = torch.nn.functional.cosine_similarity(other, expected, dim=0)
    assert float(cosine) < 0.9, "the control: without replay the gradient is of another loss"


def test_chunks_that_keep_their_graph_are_embedded_once(
    path: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number changes no bit of the gradient, with dropout."""
    model = load(path, adapter={**LORA, "dropout": 0.5})
    passes: list[int] = []
    forward = OneWorker.forward

    def counted(self: OneWorker, number: int, function: Any, *arguments: Any) -> Any:
        passes.append(number)
        return forward(self, number, function, *arguments)

    monkeypatch.setattr(OneWorker, "forward", counted)
    found, counts = {}, {}
    for kept in (1, 2, 3, 99):
        passes.clear()
        found[kept], _ = chunked(model, split, {"mode": "embedding", "kept_chunks": kept})
        counts[kept] = len(passes)
        assert torch.equal(found[kept], found[1])
    number = len(set(passes))
    assert counts == {kept: 2 * number - min(kept, number - 1) for kept in counts}
    assert number == 4
    other, _ = chunked(model, split, {"mode": "embedding", "kept_chunks": 2}, replays=False)
    assert not torch.equal(other, found[1]), "the control: a chunk with other dropout"


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_that_of_a_chunk(path: Path, engine: str, tmp_path: Path) -> None:
    """Saved activations don't grow with the batch; those of the plain loss do."""
    split = make_grit_store(tmp_path, queries=32, lengths=(20, 21)).split("train")
    model = load(path, adapter=LORA)

    def peak(queries: int, *, whole: bool) -> int:
        method, context = Gritlm(spec(mode="embedding", engine=engine)), OneWorker(model, chunk_size=8)
        batches = batches_of(split, 1, queries)
        batch, work = batches.batch(0), micro_batches_of(method, context, batches, split)
        with LiveBytes() as live:
            if whole:
                plain(
                    embed(model, method.settings, lay_out_texts(texts_of(split, batch), model.layout)), batch
                ).backward()
            else:
                method.backward(context, batches, batch, work, 0.0)
        gradient(model)
        return live.peak

    peak(8, whole=False)  # the gradients are made
    small, large = peak(16, whole=False), peak(32, whole=False)
    assert large == pytest.approx(small, rel=0.1)
    assert peak(32, whole=True) / peak(16, whole=True) == pytest.approx(2, rel=0.1), "the control"


def test_the_generative_loss_does_not_depend_on_the_micro_batch_size(path: Path, split: Split) -> None:
    model = load(path, adapter=LORA)
    keys = {"mode": "generative"}
    results = {size: chunked(model, split, keys, micro_batch_size=size) for size in (1, 2, 5)}
    for size in (2, 5):
        assert results[size][1]["loss"] == pytest.approx(results[1][1]["loss"], rel=1e-6)
        assert relative(results[size][0], results[1][0]) < 1e-5
    mixed = {"mode": "generative", "generative_normalization": "mixed"}
    losses = [chunked(model, split, mixed, micro_batch_size=size)[1]["loss"] for size in (1, 5)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the control: a mean of means depends on the cut"


def test_the_terms_of_the_generative_loss(path: Path, split: Split) -> None:
    model = load(path, adapter=LORA)
    keys = {"mode": "generative", "label_smoothing": 0.2, "z_loss": 1e-2}
    results = {size: chunked(model, split, keys, micro_batch_size=size) for size in (1, 2)}
    assert results[2][1]["loss"] == pytest.approx(results[1][1]["loss"], rel=1e-6)
    assert relative(results[2][0], results[1][0]) < 1e-5
    other, sums_without = chunked(model, split, {"mode": "generative"})
    _, z_sums = chunked(model, split, {"mode": "generative", "z_loss": 1e-2})
    both, z_loss, without = (
        Gritlm(spec()).metrics(sums, 1) for sums in (results[1][1], z_sums, sums_without)
    )
    assert both["cross_entropy"] == pytest.approx(without["generative_loss"], rel=1e-6)
    assert z_loss["generative_loss"] == pytest.approx(
        without["generative_loss"] + 1e-2 * both["z_loss"], rel=1e-6
    )
    assert abs(both["generative_loss"] - z_loss["generative_loss"]) > 1e-3
    assert not {"cross_entropy", "z_loss"} & without.keys()
    assert relative(results[1][0], other) > 0.01, "the control"


def test_mixed_is_the_mean_of_the_means(path: Path, split: Split) -> None:
    model = load(path, adapter=LORA)
    method = Gritlm(spec(mode="generative", generative_normalization="mixed"))
    context = OneWorker(model)
    batches = batches_of(split, queries=0, examples=5)
    work = micro_batches_of(method, context, batches, split)
    method.backward(context, batches, batches.batch(0), work, 0.0)
    gradient(model)
    means = [float(model.next_token_loss(one.batch)) / len(one.batch.targets) for one in work]
    assert len(means) == 3
    assert context.sums["loss"] == pytest.approx(sum(means) / 3, rel=1e-6)
    assert method.metrics(context.sums, 1)["loss"] == pytest.approx(context.sums["loss"], rel=1e-6)


def test_the_loss_by_sequence(path: Path, split: Split) -> None:
    """The sum over the tokens divided by the number of sequences, for any micro-batches; perplexity stays one of tokens."""
    model = load(path, adapter=LORA)
    found = {}
    for normalization in ("token", "sequence"):
        method = Gritlm(spec(mode="generative", generative_normalization=normalization))
        for size in (1, 2, 5):
            context = OneWorker(model, micro_batch_size=size)
            batches = batches_of(split, queries=0, examples=5)
            work = micro_batches_of(method, context, batches, split)
            method.backward(context, batches, batches.batch(0), work, 0.0)
            gradient(model)
            total = sum(float(model.next_token_loss(one.batch)) for one in work)
            tokens = sum(len(one.batch.targets) for one in work)
            expected = total / (5 if normalization == "sequence" else tokens)
            assert context.sums["loss"] == pytest.approx(expected, rel=1e-6)
            assert method.metrics(context.sums, 1)["loss"] == pytest.approx(expected, rel=1e-6)
        measured = OneWorker(model)
        with torch.no_grad():
            method.measure(measured, batches, batches.batch(0), work, 0.0)
        found[normalization] = method.metrics(measured.sums, 1)
        assert found[normalization]["loss"] == pytest.approx(expected, rel=1e-6)
    for name in ("perplexity", "token_accuracy"):
        assert found["sequence"][name] == pytest.approx(found["token"][name], rel=1e-6)


def test_the_loss_is_the_weighted_sum_of_both(path: Path, split: Split) -> None:
    model = load(path, adapter=LORA, projection=8)
    weights = {"embedding_weight": 0.5, "generative_weight": 3.0}
    both, sums = chunked(model, split, {"projection": 8, **weights})
    embedding, one = chunked(model, split, {"projection": 8, "mode": "embedding"})
    model.projection = None
    generative, other = chunked(model, split, {"mode": "generative"})
    assert sums["loss"] == pytest.approx(0.5 * one["loss"] + 3 * other["loss"], rel=1e-5)
    generative = torch.cat([generative, torch.zeros(len(both) - len(generative)).double()])
    assert relative(both, 0.5 * embedding + 3 * generative) < 1e-5


def test_equal_answers_are_not_negatives_of_each_other(path: Path, tmp_path: Path) -> None:
    same = {1: [9, 9, 9], 2: [9, 9, 9], 4: [9, 9, 9], 5: [9, 9, 9]}
    split = make_grit_store(tmp_path, queries=2, answers=2, others=0, texts=same).split("train")
    model = load(path, adapter=LORA)

    def loss(**keys: Any) -> float:
        method, context = Gritlm(spec(mode="embedding", group_size=1, **keys)), OneWorker(model)
        batches = batches_of(split, 1, 2)
        method.backward(
            context, batches, batches.batch(0), micro_batches_of(method, context, batches, split), 0.0
        )
        gradient(model)
        return context.sums["loss"]

    assert loss() == 0.0
    assert loss(mask_duplicates=False) == pytest.approx(np.log(2), rel=1e-4)


A, B, C, D, X = ([number] * 4 for number in (9, 10, 11, 12, 13))


@pytest.mark.parametrize(
    ("rows", "hidden"),
    [
        ([(A, [B]), (B, [A])], {(0, 1), (1, 0)}),  # pairs of paraphrases in both directions
        ([(A, [B]), (A, [C]), (D, [X])], {(0, 1), (1, 0)}),  # two rows of one query
        ([(A, [B]), (D, [B])], {(0, 1), (1, 0)}),
    ],
    ids=["a text that is the query", "a positive of an equal query", "an equal positive"],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_false_negatives_by_numpy(
    path: Path,
    tmp_path: Path,
    rows: list[tuple[list[int], list[list[int]]]],
    hidden: set[Any],
    symmetric: bool,
) -> None:
    texts = [text for query, positives in rows for text in (query, *positives)]
    count = len(rows)
    store = make_grit_store(tmp_path, queries=count, answers=1, others=0, texts=dict(enumerate(texts)))
    split, model = store.split("train"), load(path, adapter=LORA)

    def loss(**keys: Any) -> tuple[float, list[int]]:
        settings = spec(mode="embedding", group_size=1, symmetric=symmetric, **keys)
        method, context = Gritlm(settings), OneWorker(model)
        batches = batches_of(split, 1, count)
        method.backward(
            context, batches, batches.batch(0), micro_batches_of(method, context, batches, split), 0.0
        )
        gradient(model)
        return context.sums["loss"], [int(i) // 2 for i in batches.batch(0).text_examples()[:count]]

    found, order = loss()
    settings = spec(mode="embedding", group_size=1)
    alone = [([np.concatenate([np.full(FORMAT, 7), np.array(text)])]) for text in texts]
    batch = lay_out_texts([(one[0], np.array([[FORMAT, len(one[0])]])) for one in alone], model.layout)
    with torch.no_grad():
        vectors = embed(model, Embedding.of(settings, 64, 64), batch).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, passages = vectors[0::2][order], vectors[1::2][order]
    scores = queries @ passages.T / settings.temperature

    def by_hand(pairs: set[tuple[int, int]]) -> float:
        kept = np.array([[(order[i], order[j]) not in pairs for j in range(count)] for i in range(count)])

        def direction(values: np.ndarray, kept: np.ndarray) -> float:
            return float(-(np.diag(values) - np.log((np.exp(values) * kept).sum(1))).sum())

        one = direction(scores, kept)
        return (one + direction(scores.T, kept.T)) / 2 if symmetric else one

    assert found == pytest.approx(by_hand(hidden) / count, rel=1e-4, abs=1e-5)
    plain = loss(mask_duplicates=False)[0]
    assert plain == pytest.approx(by_hand(set()) / count, rel=1e-4), "control"
    assert plain > found + 0.01


def test_a_positive_that_a_row_outside_the_batch_gives_is_no_negative(tmp_path: Path) -> None:
    texts = dict(enumerate([A, B, A, C, D, C]))  # the second row gives C for the query of the first
    store = make_grit_store(tmp_path, queries=3, answers=1, others=0, texts=texts)
    batches = batches_of(store.split("train"), 1, 2)
    seen = 0
    for step in range(20):
        batch = batches.batch(step)
        rows = [int(example) // 2 for example in batch.text_examples()[:2]]
        if sorted(rows) == [0, 2]:
            seen += 1
            assert batch.excluded.tolist() == [[rows.index(0), rows.index(2)]]
    assert seen, "control: such a batch was drawn"


def test_chunks_by_number_and_by_tokens() -> None:
    lengths = [9, 7, 7, 4, 2, 1]
    assert cut(lengths, 4, 0) == [slice(0, 4), slice(4, 6)]
    assert cut(lengths, None, 14) == [slice(0, 1), slice(1, 3), slice(3, 6)]
    assert cut(lengths, None, 5) == [slice(i, i + 1) for i in range(3)] + [slice(3, 4), slice(4, 6)]
    assert cut([], None, 5) == []
