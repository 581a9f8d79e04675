"""Activation beacons through the loop: they learn, go on, are saved, and answer as they were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.load import Loaded, load_run
from tailor.errors import ModelError, StoreError
from tailor.evaluate.generation import Sampling, generate
from tailor.evaluate.likelihood import likelihoods, scoring_model
from tailor.evaluate.rows import Scored
from tailor.models.beacon.model import BeaconModel
from tailor.plan import Plan
from tailor.train import loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.passkeys import base, documents, examples
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store
from tests.helpers.tokens import write_tokens

WINDOW = 16
TRAINED = (27, 43, 59)
"""Tokens of the documents of training, without the answer: two to four windows."""
BEACON: dict[str, Any] = {"window": WINDOW, "ratios": [2, 4]}


@pytest.fixture(scope="module")
def passkey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlainHost]:
    """The folder of a run that trained beacons to keep a passkey, and what it reported."""
    folder = tmp_path_factory.mktemp("passkey")
    rows = {"train": examples(3 * 1200, TRAINED, within=WINDOW, seed=100)}
    rows["evaluation"] = examples(3 * 30, TRAINED, within=WINDOW, seed=7)
    plan = make_plan(
        base(folder / "base"),
        write_tokens(str(folder / "tokens"), rows),
        folder / "run",
        model={"beacon": {**BEACON, "memory": 32}},
        data={"pack": False},
        optim={"learning_rate": 3e-3},
        train={"batch_size": 32, "micro_batch_size": 32, "steps": 300},
    )
    host = PlainHost()
    loop.run(plan, host)
    return folder, host


@torch.no_grad()
def found(loaded: Loaded, length: int, ratio: int | None, *, last_window_only: bool = False) -> float:
    """Share of passkeys found in 200 documents of `length` tokens. ratio: None reads everything, without beacons."""
    ids, keys = documents(200, length, within=WINDOW, seed=5)
    windows = -(-length // WINDOW)
    if ratio is not None:
        hidden = BeaconModel(loaded.model).read(ids, (ratio,) * (windows - 1))
    else:
        ids = ids[:, (windows - 1) * WINDOW :] if last_window_only else ids
        hidden = loaded.model.get_decoder()(ids, use_cache=False).last_hidden_state
    return float((loaded.model.lm_head(hidden[:, -1]).argmax(-1) == keys).float().mean())


@pytest.mark.slow
def test_a_passkey_is_kept_through_windows_ratios_and_lengths(passkey: tuple[Path, PlainHost]) -> None:
    folder, host = passkey
    loaded = load_run(str(folder / "run"))
    assert found(loaded, 60, None) == 1.0  # what the base can do when it sees everything
    assert found(loaded, 60, None, last_window_only=True) <= 0.1  # chance is 5 %
    untrained = load_run(str(folder / "run"))
    with torch.no_grad():
        for name, weight in untrained.model.named_parameters():
            if name.endswith("own.weight"):
                weight.copy_(untrained.model.get_submodule(name.removesuffix(".own.weight")).base.weight)
    assert found(untrained, 60, 4) <= 0.5  # control: the embedding alone does not carry it
    for ratio in (2, 4):
        assert [found(loaded, length, ratio) for length in TRAINED] == [1.0, 1.0, 1.0]
    assert found(loaded, 60, 8) == 1.0  # no step had this ratio
    assert found(loaded, 150, 8) == 1.0  # and none a document 2.5 times as long
    evaluation = host.of("evaluation")[-1]
    assert evaluation["token_accuracy"] == 1.0
    assert evaluation["perplexity"] < 1.1


@pytest.mark.slow
def test_the_artifact_answers_and_scores(passkey: tuple[Path, PlainHost]) -> None:
    folder, _ = passkey
    loaded = load_run(str(folder / "run"))
    assert sorted(path.name for path in (folder / "run" / "beacon").iterdir())[:4] == [
        "COMMIT",
        "base.json",
        "beacon.json",
        "beacon.safetensors",
    ]
    assert json.loads((folder / "run/beacon/beacon.json").read_text())["ratios"] == [2, 4]
    ids, keys = documents(20, 60, within=WINDOW, seed=9)
    settings: dict[str, Any] = {"max_new_tokens": 1, "stop_ids": [], "batch_size": 8, "pad_id": 0}
    answers = generate(loaded.model, ids.tolist(), **settings)
    assert answers == [[key] for key in keys.tolist()]
    scored = [Scored((*row, key), ((60, 61),)) for row, key in zip(ids.tolist(), keys.tolist(), strict=True)]
    with_beacons = likelihoods(scoring_model(loaded.model), scored)
    assert sum(one.hits for one in with_beacons) == 20
    with loaded.without_adapter():  # the base reads everything
        whole = likelihoods(scoring_model(loaded.model), scored)
    assert [one.loss for one in whole] != [one.loss for one in with_beacons]


# --- small runs -----------------------------------------------------------------------------------

LENGTHS = [int(10 + (37 * i) % 50) for i in range(40)]
CASES: dict[str, dict[str, Any]] = {
    "copies": {"model": {"beacon": BEACON}},
    "low rank": {"model": {"beacon": {**BEACON, "rank": 4, "draw": "mixed", "sink": 2}}},
    "joined": {"model": {"beacon": BEACON}, "method": {"name": "pretrain"}},
    "checkpointed": {
        "model": {"beacon": BEACON},
        "train": {"micro_batch_size": 2, "steps": 3, "activation_checkpointing": True},
    },
    "checkpointed, one by one": {
        "model": {"beacon": BEACON},
        "train": {"micro_batch_size": 1, "activation_checkpointing": True},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("beacon")
    tokens = make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:5])
    return tiny_llama(folder / "model"), tokens, folder


def plan_of(made: tuple[Path, Any, Path], place: str, case: str = "copies", **sections: Any) -> Plan:
    model, tokens, folder = made
    values = {"data": {"pack": False}, "train": {"micro_batch_size": 2}, **CASES[case]}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return make_plan(model, tokens, folder / place, **values)


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for case, plan in plans.items():
        loop.run(plan, host)
        found[case] = host.losses() + [record["loss"] for record in host.of("evaluation")]
        host.records.clear()
    return found


@pytest.fixture(scope="module")
def one_process(made: tuple[Path, Any, Path]) -> dict[str, list[float]]:
    return curves(PlainHost(), {case: plan_of(made, f"one/{case}", case) for case in CASES})


@pytest.mark.slow
def test_two_workers_give_the_curve_of_one(
    made: tuple[Path, Any, Path], one_process: dict[str, list[float]]
) -> None:
    shared = [case for case in CASES if case != "checkpointed"]  # "one by one" is the harder one
    plans = {case: plan_of(made, f"two/{case}", case, scale={"workers": 2}) for case in shared}
    both = run_distributed(curves, plans, world=2)
    for case in shared:
        assert both[0][case] == pytest.approx(one_process[case], rel=1e-5), case
    assert one_process["copies"][:3] == one_process["checkpointed"][:3]  # bit for bit
    assert one_process["copies"] != one_process["low rank"]


def test_the_micro_batch_does_not_change_the_curve(
    made: tuple[Path, Any, Path], one_process: dict[str, list[float]]
) -> None:
    """Ratios are drawn for a step, and not for what goes through the model together."""
    alone = curves(PlainHost(), {"copies": plan_of(made, "alone", train={"micro_batch_size": 1})})
    assert alone["copies"] == pytest.approx(one_process["copies"], rel=1e-5)
    other = curves(PlainHost(), {"copies": plan_of(made, "other", train={"seed": 43})})
    assert other["copies"] != pytest.approx(one_process["copies"], rel=1e-3)  # control


def test_it_resumes_to_the_same_bytes(made: tuple[Path, Any, Path]) -> None:
    weights = {}
    for place, stop in (("whole", None), ("stopped", 3)):
        plan = plan_of(made, place, "low rank", save={"every": 2})
        first = PlainHost(stop_after=stop)
        if loop.run(plan, first) == "stopped":
            again = PlainHost(resume_from=plan.run_url)
            assert loop.run(plan, again) == "finished"
            assert [record["step"] for record in again.of("train")] == [5, 6]
        weights[place] = (made[2] / place / "beacon" / "beacon.safetensors").read_bytes()
    assert weights["whole"] == weights["stopped"]


def test_save_and_reload_change_nothing(made: tuple[Path, Any, Path]) -> None:
    kept: list[torch.Tensor] = []
    ids = torch.randint(3, 261, (2, 50), generator=torch.Generator().manual_seed(0))
    before = {path.name: path.read_bytes() for path in made[0].iterdir()}

    @torch.no_grad()
    def look(session: Any, when: str, step: int) -> None:
        if when == "evaluation":
            return
        model = session.model.eval()
        kept.append(model.read(ids, (2, 4, 2)))
        plain = {name: w for name, w in model.network.named_parameters() if not w.requires_grad}
        kept.append(torch.cat([w.flatten() for w in plain.values()]))

    plan = plan_of(made, "saved")
    loop.run(plan, PlainHost(), [look])
    start, frozen, end, still = kept
    assert torch.equal(frozen, still)  # nothing of the base was trained
    assert {path.name: path.read_bytes() for path in made[0].iterdir()} == before
    loaded = load_run(plan.run_url)
    with torch.no_grad():
        again = BeaconModel(loaded.model).read(ids, (2, 4, 2))
        plain = loaded.model.get_decoder()(ids, use_cache=False).last_hidden_state
    assert float((again - end).abs().max()) == 0.0
    assert float((start - end).abs().max()) > 1e-3  # control: training moved it
    assert float((plain - end).abs().max()) > 1e-3


def test_perplexity_of_the_artifact_is_that_of_training(made: tuple[Path, Any, Path]) -> None:
    plan, host = plan_of(made, "perplexity"), PlainHost()
    loop.run(plan, host)
    model = scoring_model(load_run(plan.run_url).model)
    split = made[1].split("evaluation")
    examples = [split.example(index) for index in range(len(split))]
    assert (
        len({-(-len(example.input_ids) // WINDOW) for example in examples}) > 1
    )  # windows of several numbers
    scored = [
        Scored(tuple(one.input_ids.tolist()), tuple(tuple(span) for span in one.spans.tolist()))
        for one in examples
    ]
    found = likelihoods(model, scored)
    mean = sum(one.loss for one in found) / sum(one.tokens for one in found)
    assert mean == pytest.approx(host.of("evaluation")[-1]["loss"], rel=1e-6)
    with model.beacons.disabled():
        plain = likelihoods(model, scored)
    assert sum(one.loss for one in plain) != pytest.approx(
        sum(one.loss for one in found), rel=1e-3
    )  # control


def test_generation_is_stepwise_reading_with_few_keys(made: tuple[Path, Any, Path]) -> None:
    plan = plan_of(made, "answers", model={"beacon": {"window": WINDOW, "ratios": [4], "sink": 1}})
    loop.run(plan, PlainHost())
    model = load_run(plan.run_url).model
    prompt = torch.randint(3, 261, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    cached: list[int] = []
    hook = model.get_decoder().register_forward_hook(
        lambda _, args, kwargs, out: cached.append(kwargs["past_key_values"].get_seq_length()),
        with_kwargs=True,
    )
    settings: dict[str, Any] = {"max_new_tokens": 40, "stop_ids": [], "batch_size": 4, "pad_id": 0}
    drawn: list[int] = []
    (answer,) = generate(model, [prompt], **settings, on_token=drawn.append)
    hook.remove()
    # 109 tokens were read when the last one was generated: 1 sink, 6 windows of 4 beacons, and 13 of the last window.
    assert cached[-1] == 1 + 6 * 4 + 13 == 38
    assert drawn == answer
    context = list(prompt)
    with torch.no_grad():
        for token in answer:
            windows = -(-len(context) // WINDOW)
            hidden = BeaconModel(model).read(torch.tensor([context]), (4,) * (windows - 1))
            assert int(model.lm_head(hidden[0, -1]).argmax()) == token
            context.append(token)
    # control: without what was forgotten, and without beacons, the continuation differs
    with torch.no_grad():
        tail = model.generate(torch.tensor([prompt[64:]]), max_new_tokens=40, do_sample=False)
    assert tail[0, 6:].tolist() != answer
    # many prompts at once, short ones among them, answer as alone
    several = [prompt, prompt[:9], prompt[:33]]
    together = generate(model, several, **{**settings, "max_new_tokens": 5})
    assert together == [generate(model, [one], **{**settings, "max_new_tokens": 5})[0] for one in several]
    sampled = {**settings, "sampling": Sampling(1.0, seed=3), "max_new_tokens": 30}
    both = generate(model, [prompt, prompt[:50]], **sampled)  # sampling continues over the windows
    assert both[1] == generate(model, [prompt[:50]], **sampled, numbers=[1])[0] != both[0]
    # a stop token ends it, also in a later window
    stop = next(token for token in answer[20:] if token not in answer[:20])
    (ended,) = generate(model, [prompt], **{**settings, "stop_ids": [stop]})
    assert ended == answer[: answer.index(stop)]


def test_it_begins_with_the_beacons_of_another_run(made: tuple[Path, Any, Path]) -> None:
    first = plan_of(made, "first")
    loop.run(first, PlainHost())
    model = {"beacon": BEACON, "warm_start": first.run_url}
    seen: list[torch.Tensor] = []

    def look(session: Any, when: str, step: int) -> None:
        if when == "evaluation":
            return
        seen.append(session.model.beacons.embedding.detach().clone())

    loop.run(plan_of(made, "second", model=model), PlainHost(), [look])
    assert torch.equal(seen[0], load_run(first.run_url).model.beacons.embedding)
    loop_with_rank = plan_of(made, "third", model={**model, "beacon": {**BEACON, "rank": 4}})
    with pytest.raises(StoreError, match="do not match this model: "):
        loop.run(loop_with_rank, PlainHost())


def test_unsupported_keys_with_beacons_are_rejected(made: tuple[Path, Any, Path]) -> None:
    from tailor.artifacts.average import average
    from tailor.artifacts.inputs import open_source

    plan = plan_of(made, "refused")
    loop.run(plan, PlainHost())
    with pytest.raises(ModelError, match="has activation beacons, which cannot be merged"):
        open_source(plan.run_url)
    with pytest.raises(ModelError, match="has activation beacons, which cannot be averaged"):
        average([plan.run_url, plan.run_url], str(made[2] / "average"))


def test_a_quantized_base_is_trained_with_low_rank_updates(made: tuple[Path, Any, Path]) -> None:
    model = {"beacon": {**BEACON, "rank": 4}, "quantize": {"type": "nf4"}}
    ids = torch.randint(3, 261, (2, 50), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    @torch.no_grad()
    def look(session: Any, when: str, step: int) -> None:
        if when == "evaluation":
            return
        with session.autocast():
            seen.append(session.model.eval().read(ids, (2, 4, 2)).float())

    plan = plan_of(made, "nf4", model=model, train={"precision": "bf16"}, optim={"learning_rate": 1e-2})
    host = PlainHost()
    loop.run(plan, host, [look])
    loaded = load_run(plan.run_url)
    assert loaded.model.is_loaded_in_4bit
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = BeaconModel(loaded.model).read(ids, (2, 4, 2)).float()
    assert torch.equal(again, seen[1])
    assert float((seen[0] - seen[1]).norm() / seen[1].norm()) > 0.01  # control: training moved it
    unchecked = plan_of(made, "quantized copies", model={**model, "beacon": BEACON})
    with pytest.raises(
        ModelError, match="trains copies of the base's projections, and quantized weights cannot be copied"
    ):
        loop.run(unchecked, PlainHost())
