"""Method gritlm in the loop: the curve is the same for any number of workers and chunks, and after a resume."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tailor.artifacts.average import average
from tailor.artifacts.load import load_run
from tailor.artifacts.load_embedder import load_embedder
from tailor.artifacts.merge import merge
from tailor.data.grit_batches import GritBatch
from tailor.data.token_store import TokenStore
from tailor.encode.tasks import Work
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.evaluate.generation import generate
from tailor.export.forms import find_form
from tailor.export.request import Request, Selection
from tailor.methods import gritlm
from tailor.methods.base import MicroBatch
from tailor.models import prefix_lm
from tailor.models.causal import base_of
from tailor.models.embedding.embedder import Embedder
from tailor.models.embedding.settings import Embedding
from tailor.plan import Plan
from tailor.store import Store
from tailor.train import loop
from tailor.train.optimizer import trained_parameters
from tailor.train.session import Session, open_session
from tailor.train.step import SessionContext, read_micro_batches
from tailor.train.strategy import internals
from tests.helpers.embedding_stores import make_grit_store, write_groups
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan

pytestmark = pytest.mark.slow

METHOD = {
    "name": "gritlm",
    "temperature": 0.1,
    "projection": 16,
    "embedding_batch_size": 6,
    "generative_batch_size": 3,
    "chunk_size": 4,
    "group_size": 2,
}
TRAIN: dict[str, Any] = {"steps": 4, "batch_size": None, "micro_batch_size": 2}
TEXTS = ["the sea is wide", "a house", "and a third text"]


@dataclass(frozen=True)
class Made:
    """A tiny model, rows of both kinds, rows of texts alone, and a folder for runs."""

    model: Path
    both: TokenStore
    texts: TokenStore
    folder: Path

    def plan(self, place: str, **keys: Any) -> Plan:
        """A plan of the method's keys, and of `adapted`, `workers`, `strategy`, `quantize`, `train` and `save`."""
        own: dict[str, Any] = {"path": str(self.model)}
        if keys.pop("adapted", True):
            own["adapter"] = {**LORA, "dropout": 0.1}
        if keys.pop("quantize", False):
            own["quantize"] = {"type": "nf4"}
        scale = {"workers": keys.pop("workers", 1), "strategy": keys.pop("strategy", {"name": "ddp"})}
        train, save = {**TRAIN, **keys.pop("train", {})}, keys.pop("save", {})
        tokens = self.texts if keys.get("mode") == "embedding" else self.both
        return make_plan(
            self.model,
            tokens,
            self.folder / place,
            model=own,
            method={**METHOD, **keys},
            train=train,
            scale=scale,
            save=save,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gritlm")
    return Made(
        tiny_llama(folder / "model"),
        make_grit_store(folder / "both", queries=13, examples=7, evaluation=5),
        make_grit_store(folder / "texts", queries=13),
        folder,
    )


def curve(host: PlainHost, plan: Plan) -> list[float]:
    """The losses of each step, and of the evaluation at the end."""
    loop.run(plan, host)
    records = [*host.of("train"), *host.of("evaluation")]
    host.records.clear()
    names = ("loss", "embedding_loss", "generative_loss")
    return [record[name] for record in records for name in names if name in record]


def gradients(host: PlainHost, plan: Plan) -> np.ndarray:
    """Of the first step's loss, by all trained weights, before any update."""
    session = open_session(plan, host)
    session.model.train()
    batch = session.batches.batch(0)
    context = SessionContext(session, 0)
    work = list(read_micro_batches(session, session.batches, session.collator("train"), batch))
    session.method.backward(context, session.batches, batch, work, 0.0)
    parts = [p.grad.flatten() for _, p in trained_parameters(session.model) if p.grad is not None]
    return torch.cat(parts).double().numpy()  # a tensor would stay in the memory of a process that ends


def by_world(self: gritlm.Gritlm, batch: GritBatch) -> float:
    """The mistake of the published code: its gradient of the embedding loss is divided by the number of workers."""
    return self.spec.embedding_weight / batch.queries / torch.distributed.get_world_size()


def moved(host: PlainHost, plan: Plan) -> float:
    """How far this worker's part of the loss moves when the last query's answer becomes another text."""
    session = open_session(plan, host)
    batch = session.batches.batch(0)
    assert isinstance(batch, GritBatch)
    work = list(read_micro_batches(session, session.batches, session.collator("train"), batch))
    place = batch.queries + (batch.queries - 1) * batch.group

    def own_loss(work: list[MicroBatch]) -> float:
        context = SessionContext(session, 0)
        with torch.no_grad():
            session.method.measure(context, session.batches, batch, work, 0.0)
        return float(context.totals._sums["embedding_loss"])

    def changed(one: MicroBatch) -> Work:
        pool = one.batch.pool
        if pool is None or place not in pool.text_index.tolist():
            return one
        ids = one.batch.input_ids.clone()
        at = pool.positions[pool.text == pool.text_index.tolist().index(place)]
        ids.view(-1)[at] = 5 + (ids.view(-1)[at] + 7) % 40
        return one._replace(batch=dataclasses.replace(one.batch, input_ids=ids))

    return abs(own_loss([changed(one) for one in work]) - own_loss(work))


class Results(NamedTuple):
    """Of one of two workers."""

    curves: dict[str, list[float]]
    gradients: dict[str, np.ndarray]
    moved: dict[str, float]


def two_workers(
    host: PlainHost, plans: dict[str, Plan], balance: dict[str, Plan], negatives: dict[str, Plan]
) -> Results:
    curves = {case: curve(host, plan) for case, plan in plans.items()}
    after_step, internals._Stage3.after_step = internals._Stage3.after_step, lambda self: None  # type: ignore[method-assign]
    plan = plans["zero-3, full"]
    curves["zero-3, not cleared"] = curve(host, dataclasses.replace(plan, run_url=f"{plan.run_url}-control"))
    internals._Stage3.after_step = after_step  # type: ignore[method-assign]
    found = {case: gradients(host, plan) for case, plan in balance.items()}
    right, gritlm.Gritlm._weight = gritlm.Gritlm._weight, by_world  # type: ignore[method-assign]
    found |= {f"{case}, divided": gradients(host, plan) for case, plan in balance.items()}
    gritlm.Gritlm._weight = right  # type: ignore[method-assign]
    return Results(curves, found, {kind: moved(host, plan) for kind, plan in negatives.items()})


FSDP = {"strategy": {"name": "fsdp"}}
CASES: dict[str, dict[str, Any]] = {
    "ddp, lora": {},
    "ddp, full": {"adapted": False},
    "ddp, two of three chunks are kept": {"mode": "embedding", "kept_chunks": 2},
    "ddp, chunk_checkpoint": {"engine": "chunk_checkpoint"},
    "ddp, embedding alone, full": {"mode": "embedding", "adapted": False},
    "ddp, embedding alone, chunk_checkpoint": {"mode": "embedding", "engine": "chunk_checkpoint"},
    "ddp, distillation": {"distillation": "kl", "matryoshka": [8]},
    "ddp, one worker without a chunk": {"embedding_batch_size": 2, "group_size": 1},
    "fsdp, lora, regularized": {
        **FSDP,
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "neftune_alpha": 5,
        "no_duplicates": True,
    },
    "fsdp, full": {**FSDP, "adapted": False},
    "fsdp, prefix LM": {
        **FSDP,
        "attention": "bidirectional_text",
        "generative_attention": "prefix_lm",
        "train_on": "last_assistant",
    },
    "fsdp, full, chunk_checkpoint": {**FSDP, "adapted": False, "engine": "chunk_checkpoint"},
}
CASES |= {
    f"zero-{stage}, {name}": {"strategy": {"name": "deepspeed", "stage": stage}, **keys}
    for stage in (1, 2, 3)
    for name, keys in {
        "lora": {},
        "full": {"adapted": False},
        "full, chunk_checkpoint": {"adapted": False, "engine": "chunk_checkpoint"},
    }.items()
}
BALANCE: dict[str, dict[str, Any]] = {"equal": {}, "more embedding": {"embedding_weight": 2.0}}


@pytest.fixture(scope="module")
def distributed(made: Made) -> list[Results]:
    """Of both workers."""
    plans = {case: made.plan(f"two/{case}", workers=2, **keys) for case, keys in CASES.items()}
    balance = {case: made.plan(f"two/{case}", workers=2, **keys) for case, keys in BALANCE.items()}
    negatives = {
        kind: made.plan(f"two/{kind}", workers=2, mode="embedding", negatives=kind)
        for kind in ("global", "local")
    }
    return run_distributed(two_workers, plans, balance, negatives, world=2)


@pytest.mark.parametrize("case", CASES)
def test_one_worker_equals_two(made: Made, distributed: list[Results], case: str) -> None:
    """Under every strategy: the same curve as that of one worker that holds everything."""
    keys = {name: value for name, value in CASES[case].items() if name != "strategy"}
    alone = curve(PlainHost(), made.plan(f"one/{case}", **keys))
    assert len(alone) >= 8
    assert distributed[0].curves[case] == pytest.approx(alone, abs=1e-5)


def test_control_gradients_left_from_the_last_step_change_the_curve(distributed: list[Results]) -> None:
    """The texts reach no head, so under ZeRO 3 the generation's gradient would be added to the last step's."""
    right, wrong = (np.array(distributed[0].curves[f"zero-3, {case}"]) for case in ("full", "not cleared"))
    assert right[:6] == pytest.approx(wrong[:6], abs=1e-5), "the first two losses see one gradient"
    assert abs(right - wrong).max() > 1e-3


def test_gradients_and_their_balance_are_those_of_one_worker(made: Made, distributed: list[Results]) -> None:
    one = {case: gradients(PlainHost(), made.plan(f"one/{case}", **keys)) for case, keys in BALANCE.items()}
    two = distributed[0].gradients
    for case in BALANCE:
        assert np.linalg.norm(two[case] - one[case]) < 1e-5 * np.linalg.norm(one[case])

    def ratio(found: dict[str, np.ndarray], kind: str = "") -> float:
        """Norm of the embedding loss's gradient by that of the generative one's."""
        embedding = found[f"more embedding{kind}"] - found[f"equal{kind}"]
        return float(np.linalg.norm(embedding) / np.linalg.norm(found[f"equal{kind}"] - embedding))

    assert ratio(two) == pytest.approx(ratio(one), rel=1e-4)
    assert ratio(two, ", divided") == pytest.approx(ratio(one) / 2, rel=1e-4), "the control"


def test_a_passage_of_another_worker_is_a_negative_only_with_global_negatives(
    distributed: list[Results],
) -> None:
    """The text that changes answers a query of the second worker."""
    first, second = (of.moved for of in distributed)
    assert first["global"] > 1e-3
    assert first["local"] == 0.0
    assert min(second.values()) > 1e-3, "the control: the passage itself moves its own query's loss"


@pytest.mark.parametrize("engine", ["gradcache", "chunk_checkpoint"])
def test_a_resumed_run_equals_one_that_never_stopped(made: Made, engine: str) -> None:
    whole, first, second = PlainHost(), PlainHost(stop_after=2), PlainHost()
    loop.run(made.plan(f"whole-{engine}", engine=engine), whole)
    plan = made.plan(f"halves-{engine}", engine=engine)
    assert loop.run(plan, first) == "stopped"
    second.resume_from = plan.run_url
    loop.run(plan, second)
    assert [*first.losses(), *second.losses()] == whole.losses()


def test_the_saved_model_embeds_and_generates_as_the_trained_one(made: Made) -> None:
    plan, kept = made.plan("saved"), {}

    def probe(session: Session, when: str, step: int) -> None:
        if when == "evaluation":
            return
        settings = Embedding.of(session.plan.method, 64, 64)  # type: ignore[arg-type]
        one = Embedder(session.model, load_tokenizer(str(made.model)), settings)
        kept[when] = one.encode(TEXTS, "Find it")

    loop.run(plan, PlainHost(), [probe])
    url = f"{plan.run_url}/adapter"
    loaded = load_embedder(url)
    prompt = torch.tensor([[1, 50, 60, 70, 80]])
    answers = [generated(loaded.model.network, prompt)]
    embeddings = loaded.encode(TEXTS, "Find it")
    answers.append(generated(loaded.model.network, prompt))
    answers.append(generated(load_run(url).model, prompt))
    assert answers[0] == answers[1] == answers[2]
    assert np.allclose(embeddings, kept["end"], atol=1e-6)
    assert float(np.abs(kept["start"] - kept["end"]).max()) > 1e-3, "the control: training changed them"
    projection, loaded.model.projection = loaded.model.projection, None
    assert projection is not None
    loaded.dimension = 16
    assert float(np.abs(loaded.encode(TEXTS, "Find it") - embeddings).max()) > 0.05, "the projection counts"
    assert not hasattr(AutoConfig.from_pretrained(made.model), "is_causal")
    loaded.model.base.config.is_causal = False
    assert generated(loaded.model.network, prompt) != answers[0], (
        "the control: saved so, it could not generate"
    )


def test_the_saved_model_attends_as_the_trained_one(made: Made, tmp_path: Path) -> None:
    """By segments in texts, and in both directions in prompts: from the artifact, and merged."""
    kept: dict[str, Any] = {}

    def probe(session: Session, when: str, step: int) -> None:
        if when == "end":
            assert prefix_lm.is_enabled(session.model.base)
            settings = Embedding.of(session.plan.method, 64, 64)  # type: ignore[arg-type]
            one = Embedder(session.model, load_tokenizer(str(made.model)), settings)
            kept["embeddings"] = one.encode(TEXTS, "Find it")
            kept["answers"] = answer(session.model.network)

    def answer(network: Any) -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": (), "batch_size": 2, "pad_id": 0}
        return generate(network, [[1, 50, 60, 70, 80], [1, 90, 40]], **settings)

    plan = made.plan(
        "prefix", attention="bidirectional_text", generative_attention="prefix_lm", train_on="last_assistant"
    )
    loop.run(plan, PlainHost(), [probe])
    url = f"{plan.run_url}/adapter"
    for saved in (url, merge(url, to=str(tmp_path / "merged"), say=lambda _: None).url):
        assert answer(load_run(saved).model) == kept["answers"]
        assert np.allclose(load_embedder(saved).encode(TEXTS, "Find it"), kept["embeddings"], atol=1e-5)
    loaded = load_run(url)
    with prefix_lm.disabled(base_of(loaded.model)):
        assert answer(loaded.model) != kept["answers"], "the control: causal prompts"
    other = made.plan("prefix-other", train={"steps": 1})
    loop.run(other, PlainHost())
    with pytest.raises(ModelError, match="was trained as a prefix LM, but"):
        average([url, f"{other.run_url}/adapter"], str(tmp_path / "average"))
    for form, reason in (("ollama", "reads prompts causally"), ("sentence-transformers", "as a whole")):
        with pytest.raises(ModelError, match=reason):
            find_form(form).check(Selection(Store(plan.run_url), "merged", Request(form=form)))


def generated(network: Any, prompt: torch.Tensor) -> list[int]:
    """Greedily, with an attention that knows caches."""
    base = base_of(network)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    out = network.generate(input_ids=prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    base.set_attn_implementation(before)
    ids: list[int] = out[0].tolist()
    return ids


def test_a_whole_model_is_saved_with_its_projection(made: Made) -> None:
    plan = made.plan("whole", adapted=False, strategy={"name": "fsdp"}, train={"steps": 1})
    loop.run(plan, PlainHost())
    assert load_embedder(f"{plan.run_url}/model").encode(TEXTS).shape == (3, 16)


def test_a_quantized_base_stays_as_it_is(made: Made) -> None:
    frozen: dict[str, list[torch.Tensor]] = {}
    trained: dict[str, list[torch.Tensor]] = {}

    def probe(session: Session, when: str, step: int) -> None:
        if when == "evaluation":
            return
        for name, parameter in session.model.named_parameters():
            (trained if parameter.requires_grad else frozen).setdefault(name, []).append(
                parameter.detach().clone()
            )

    loop.run(made.plan("quantized", quantize=True, train={"steps": 2}), PlainHost(), [probe])
    assert any(before.dtype == torch.uint8 for before, _ in frozen.values())
    assert all(torch.equal(before, after) for before, after in frozen.values())
    assert not any(torch.equal(before, after) for before, after in trained.values()), "the control"


KINDS, VALUES, FIRST = 3, 6, 20
"""Things have so many properties, each with so many values; tokens from FIRST on name them, in queries otherwise than in passages."""


def make_pairs(folder: Path, *, shuffled: bool) -> TokenStore:
    """Queries about things in words of their own, passages about the same things in others, and sentences to generate.

    A fifth of the items is held out for evaluation. shuffled: each query has another thing's passage.
    """
    generator = np.random.default_rng(0)
    things = list(itertools.product(range(VALUES), repeat=KINDS))
    generator.shuffle(things)
    writers: dict[str, list[Any]] = {}
    for at, thing in enumerate(things):
        other = things[(at + 7) % len(things)] if shuffled else thing
        words = [[FIRST + VALUES * kind + value for kind, value in enumerate(one)] for one in (thing, other)]
        query = generator.permutation(words[0])
        passage = generator.permutation(np.array(words[1]) + KINDS * VALUES)
        group = [([7, *query], [(1, 4)]), ([7, *passage], [(1, 4)])]
        writers.setdefault("evaluation" if at < len(things) // 5 else "train", []).append(group)
    sentence = [([1, 60 + at, 80 + at, 100 + at], [(2, 4)]) for at in range(8)]
    return write_groups(folder, {**writers, "sentences": [[one] for one in sentence]})


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_to_find_and_to_generate(shuffled: bool, made: Made, tmp_path: Path) -> None:
    """Things that no training row has are found by what was learned of their properties; the control has no such thing."""
    tokens = make_pairs(tmp_path / "tokens", shuffled=shuffled)
    host = PlainHost()
    plan = make_plan(
        made.model,
        tokens,
        tmp_path / "run",
        method={
            "name": "gritlm",
            "group_size": 1,
            "temperature": 0.05,
            "embedding_batch_size": 48,
            "generative_batch_size": 8,
            "chunk_size": 48,
        },
        optim={"learning_rate": 3e-3, "schedule": "constant"},
        train={"steps": 120, "batch_size": None, "micro_batch_size": 8},
    )
    loop.run(plan, host)
    (evaluation,) = host.of("evaluation")
    generated = [record["generative_loss"] for record in host.of("train")]
    assert generated[-1] < 0.2 * generated[0]
    if shuffled:
        assert evaluation["embedding_accuracy"] < 0.2, "the control"
    else:
        assert evaluation["embedding_accuracy"] > 0.95
