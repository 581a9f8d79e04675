"""Rerankers in the loop: losses as of an independent loop, equal curves of each way to compute them, and the saved scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.artifacts.cross_encoder import CrossEncoderModel
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.data.token_store import TokenStore
from tailor.errors import ModelError
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.plan import Plan
from tailor.train import loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.plans import LORA
from tests.helpers.rerankers import STEPS, Planner, make_planner, rows
from tests.helpers.strategies import STRATEGIES

SLOWER = [
    pytest.param(kind, marks=pytest.mark.soak)
    for kind in ("modernbert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "camembert")
]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return make_planner(tmp_path_factory.mktemp("rerank"))


def curve(host: PlainHost, plan: Plan) -> list[float]:
    loop.run(plan, host)
    losses = host.losses()
    host.records.clear()
    return losses


PLAIN = {"model": {"base_dropout": 0.0}}
LOSSES: dict[str, dict[str, Any]] = {
    "listwise": {},
    "pointwise": {"loss": "pointwise"},
    "kl": {"distillation": "kl", "teacher_temperature": 2.0, "distillation_weight": 0.5},
    "margin_mse": {"distillation": "margin_mse", "ranking_weight": 0.0},
}


def independent(plan: Plan, keys: dict[str, Any]) -> list[float]:
    """The same training with transformers and PyTorch alone: tokenizer, model, losses and optimizer. Only which passages a
    step draws is taken from the plan's tokens, as texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tailor.data.facts import of_split

    split = TokenStore.open(plan.tokens_url).split("train")
    batches = of_split(split, plan.batches)
    data = rows(14, 0)
    members = [(row, number) for row in data for number in range(1 + len(row["neg"]))]
    tokenizer = AutoTokenizer.from_pretrained(plan.model.path)
    torch.manual_seed(plan.batches.seed)
    model = AutoModelForSequenceClassification.from_pretrained(plan.model.path, num_labels=1).eval()
    typed = {"return_token_type_ids": plan.model.path.endswith("bert")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        total = torch.zeros(())
        batch = batches.batch(step)
        for group in batch:
            chosen = [members[example] for example in group]
            texts = [row["pos"][0] if number == 0 else row["neg"][number - 1] for row, number in chosen]
            known = [
                row["pos_scores"][0] if number == 0 else row["neg_scores"][number - 1]
                for row, number in chosen
            ]
            queries = [row["query"] for row, _ in chosen]
            encoded = tokenizer(queries, texts, padding=True, return_tensors="pt", **typed)
            scores = model(**encoded).logits[:, 0]
            teacher = torch.tensor(known)
            probabilities = torch.softmax(scores, 0)
            match keys.get("distillation"):
                case "kl":
                    target = torch.softmax(teacher / 2.0, 0)
                    distilled = (target * (target.log() - probabilities.log())).sum()
                    total = total + 0.5 * distilled - probabilities[0].log()
                case "margin_mse":
                    margins = (scores[0] - scores[1:]) - (teacher[0] - teacher[1:])
                    total = total + (margins**2).mean()
                case _ if keys.get("loss") == "pointwise":
                    chance = torch.sigmoid(scores)
                    total = total - (chance[0].log() + (1 - chance[1:]).log().sum()) / len(texts)
                case _:
                    total = total - probabilities[0].log()
        loss = total / len(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", [*LOSSES, "decoder"])
def test_losses_are_those_of_an_independent_loop(planner: Planner, name: str) -> None:
    keys = LOSSES.get(name, {})
    base = PLAIN if name in LOSSES else {"kind": "llama/bos"}
    plan = planner(f"reference/{name}", **base, **keys)
    expected = independent(plan, keys)
    assert curve(PlainHost(), plan) == pytest.approx(expected, abs=1e-5)
    assert expected[0] - expected[-1] != pytest.approx(0, abs=1e-2), "the control: training changes the loss"


@pytest.mark.parametrize("kind", ["bert", pytest.param("llama", marks=pytest.mark.soak), *SLOWER])
def test_micro_batches_give_the_same_losses(planner: Planner, kind: str) -> None:
    plain = {} if kind in ("modernbert", "llama") else PLAIN
    whole = curve(PlainHost(), planner(f"whole-{kind}", kind, train={"micro_batch_size": 4}, **plain))
    split = curve(PlainHost(), planner(f"split-{kind}", kind, train={"micro_batch_size": 1}, **plain))
    assert split == pytest.approx(whole, abs=1e-5)
    other = curve(PlainHost(), planner(f"other-{kind}", kind, group_size=4, **plain))
    assert max(abs(a - b) for a, b in zip(whole, other, strict=True)) > 1e-3, "the control"


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[float]]:
    return {case: curve(host, plan) for case, plan in plans.items()}


@pytest.mark.soak
@pytest.mark.slow
def test_two_workers_give_the_same_losses(planner: Planner) -> None:
    """Also when one of them has no group of its own."""
    cases: dict[str, dict[str, Any]] = {
        "dropout": {},
        "uneven": {"train": {"batch_size": 3, "micro_batch_size": 1}},
        "kl": LOSSES["kl"],
    }
    plans = {case: planner(f"two/{case}", workers=2, **keys) for case, keys in cases.items()}
    found = run_distributed(curves, plans, world=2)[0]
    for case, keys in cases.items():
        assert found[case] == pytest.approx(curve(PlainHost(), planner(f"one/{case}", **keys)), abs=1e-5)


@pytest.mark.soak
@pytest.mark.slow
def test_sharded_workers_give_the_same_losses_and_scores(planner: Planner) -> None:
    """Of an encoder and a decoder, with all weights and with an adapter: those of one worker, and the saved scores too."""
    from sentence_transformers import CrossEncoder

    adapter = {"model": {"adapter": {**LORA, "target_modules": "all-linear"}}}
    bases: dict[str, dict[str, Any]] = {
        "bert": PLAIN,
        "llama": {"kind": "llama"},
        "adapted": {"kind": "llama", **adapter},
    }
    cases = [(name, base) for name in STRATEGIES if name != "ddp" for base in bases]
    plans = {
        f"{base}-{name}": planner(
            f"sharded/{base}-{name}", workers=2, strategy=STRATEGIES[name], **bases[base]
        )
        for name, base in cases
    }
    found = run_distributed(curves, plans, world=2)[0]
    pairs = [(row["query"], passage) for row in rows(5, 1) for passage in (*row["pos"], *row["neg"])]

    def scores(plan: Plan) -> np.ndarray:
        folder = Path(plan.run_url) / "model"
        if plan.model.adapter is not None:
            folder = Path(plan.run_url) / "merged"
            merge(plan.run_url, str(folder))
        options: Any = {"device": "cpu", "local_files_only": True, "activation_fn": torch.nn.Identity()}
        predicted: np.ndarray = CrossEncoder(str(folder), **options).predict(pairs)
        return (
            predicted - predicted.mean()
        )  # the listwise loss has no gradient for what is added to all scores but rounding

    for base, keys in bases.items():
        alone = planner(f"alone/{base}", **keys)
        expected, other = curve(PlainHost(), alone), scores(alone)
        for name in (name for name, own in cases if own == base):
            case = f"{base}-{name}"
            assert found[case] == pytest.approx(expected, abs=1e-5), case
            assert np.abs(scores(plans[case]) - other).max() <= 1e-4, case
        assert abs(expected[0] - expected[-1]) > 1e-3, "the control: training changes the loss"


def test_a_resumed_run_has_the_same_losses(planner: Planner) -> None:
    keys = {"save": {"every": 3}}
    whole = curve(PlainHost(), planner("unbroken", **keys))
    plan, stopped = planner("resumed", **keys), PlainHost(stop_after=3)
    loop.run(plan, stopped)
    resumed = PlainHost(resume_from=plan.run_url)
    loop.run(plan, resumed)
    assert stopped.losses() + resumed.losses() == pytest.approx(whole, abs=1e-7)
    assert 3 <= len(stopped.losses()) < STEPS, "the control: it stopped"


@pytest.mark.parametrize("kind", ["bert", *SLOWER])
def test_the_saved_folder_is_a_cross_encoder(planner: Planner, tmp_path: Path, kind: str) -> None:
    """sentence-transformers' scores are those of the trained model, which reads the tokens of the store."""
    from sentence_transformers import CrossEncoder

    from tailor.methods import load_method
    from tailor.models import scoring_head
    from tailor.models.collator import Collator

    plan, kept = planner(f"saved-{kind}", kind), {}

    def probe(session: Any, when: str, step: int) -> None:
        split = session.tokens.split("evaluation")
        row = tuple(range(4))
        batch = load_method(plan.method).read(Collator(split, "rows"), [row], slice(0, 1))
        with session.model.inference_mode():
            kept[when] = scoring_head.scores(session.model.base, batch).numpy()

    host = PlainHost()
    loop.run(plan, host, [probe])
    found = rows(5, 1)[0]
    texts = [(found["query"], passage) for passage in (*found["pos"], *found["neg"])]
    folder = Path(plan.run_url) / "model"
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    assert np.abs(model.predict(texts) - kept["end"]).max() <= 1e-5
    assert np.abs(kept["start"] - kept["end"]).max() > 1e-3, "the control: training changed them"
    swapped = [(passage, query) for query, passage in texts]
    assert np.abs(model.predict(swapped) - kept["end"]).max() > 1e-4, "the control: the order matters"
    teacher = CrossEncoderModel(plan.run_url)
    assert teacher(texts) == pytest.approx(kept["end"].tolist(), abs=1e-5)
    other = planner(f"seed-{kind}", kind, train={"seed": 7})
    loop.run(other, PlainHost(), [probe])
    assert np.abs(teacher(texts) - kept["start"]).max() > 1e-3, "the control: another seed has another head"
    (evaluation,) = (record for record in host.of("evaluation") if record["step"] == STEPS)
    assert 0 < evaluation["ndcg_at_10"] <= 1


def test_a_run_is_refused_as_another_model(planner: Planner) -> None:
    plan = planner("refused")
    loop.run(plan, PlainHost())
    with pytest.raises(ModelError, match="is a reranker"):
        load_run(plan.run_url)
    with pytest.raises(ModelError, match="is a reranker"):
        require_embeddings(plan.run_url)


def test_training_ranks_the_passages_better(planner: Planner) -> None:
    host = PlainHost()
    loop.run(planner("learned", train={"steps": 24, "batch_size": 7}, group_size=4), host)
    first, *_, last = host.of("train")
    assert last["ranking_accuracy"] > first["ranking_accuracy"]
    assert last["loss"] < first["loss"]
