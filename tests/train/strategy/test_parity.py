"""Two workers under any strategy give the curve of one process.

float32: the strategies differ from one process only in the order in which numbers are added, so a loss of about 6
agrees to some denominator of float32's last place (5e-7 each); six steps of AdamW were seen to spread that to 5e-7. Losses
and gradient norms must agree to 1e-5, as in the parity of data parallelism.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tailor.train.strategy.deepspeed import Zero
from tailor.train.strategy.fsdp import FullySharded
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import STRATEGIES, curve, curves, under

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LENGTHS = [int(10 + (37 * i) % 50) for i in range(60)]
LORA_MODEL = {"model": {"adapter": {**LORA, "dropout": 0.1}}}
AGAIN = {"activation_checkpointing": True}
REGULARIZED = {"name": "sft", "label_smoothing": 0.1, "z_loss": 1e-3, "neftune_alpha": 5}
MODELS: dict[str, dict[str, Any]] = {
    "full": {"optim": {"max_grad_norm": 0.5}},
    "lora": LORA_MODEL,
    "full, checkpointed": {"optim": {"max_grad_norm": 0.5}, "train": AGAIN},
    "lora, checkpointed, regularized": {**LORA_MODEL, "train": AGAIN, "method": REGULARIZED},
    "three rows for two workers": {"train": {"batch_size": 3}},
    "learning-rate ratios": {"optim": {"learning_rate_ratios": {"embeddings": 0.1, "head": 5}}},
}
SHARED = [name for name in STRATEGIES if name != "ddp"]
CASES = [(strategy, model) for strategy in SHARED for model in MODELS] + [("ddp", "full"), ("ddp", "lora")]
OFFLOADED: dict[str, Any] = {
    "fsdp, offload": {"name": "fsdp", "offload": True},
    "zero-2, offload": {"name": "deepspeed", "stage": 2, "offload_optimizer": "cpu"},
    "zero-3, offload": {
        "name": "deepspeed",
        "stage": 3,
        "offload_optimizer": "cpu",
        "offload_parameters": "cpu",
    },
}


def steps(sections: dict[str, Any]) -> dict[str, Any]:
    return {**sections, "train": {"steps": 4, **sections.get("train", {})}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("strategies")
    model = tiny_llama(folder / "model")
    return model, make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:7]), folder


@pytest.fixture(scope="module")
def alone(made: tuple[Path, Any, Path]) -> dict[str, dict[str, list[float]]]:
    model, tokens, folder = made
    return {
        name: curve(PlainHost(), make_plan(model, tokens, folder / "one" / name, **steps(sections)))
        for name, sections in MODELS.items()
    }


def _with_control(host: PlainHost, plans: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    found = curves(host, plans)
    for kind, name in ((FullySharded, "fsdp"), (Zero, "zero-2")):
        right = kind.scale
        kind.scale = lambda self, loss, denominator, right=right: (
            right(self, loss, denominator)
            * (  # type: ignore[method-assign]
                1.4 if self.rank else 0.6
            )
        )
        plan = plans[f"{name} full"]
        found[f"{name} control"] = curve(host, dataclasses.replace(plan, run_url=f"{plan.run_url}-control"))
        kind.scale = right  # type: ignore[method-assign]
    return found


@pytest.fixture(scope="module")
def shared(made: tuple[Path, Any, Path]) -> dict[str, dict[str, list[float]]]:
    model, tokens, folder = made
    plans = {
        f"{strategy} {name}": make_plan(
            model, tokens, folder / strategy / name, **steps(MODELS[name]), scale=under(strategy)
        )
        for strategy, name in CASES
    }
    for name, strategy in OFFLOADED.items():
        scale = {"workers": 2, "strategy": strategy}
        plans[name] = make_plan(model, tokens, folder / name, **steps(MODELS["full"]), scale=scale)
    results = run_distributed(_with_control, plans, world=2)
    assert results[0] == results[1] or results[1]["fsdp full"]["losses"] == []
    return results[0]


def same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert len(expected["losses"]) == 4
    assert len(expected["evaluations"]) == 1
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name


@pytest.mark.parametrize(("strategy", "name"), CASES)
def test_two_workers_equal_one_process(shared: Any, alone: Any, strategy: str, name: str) -> None:
    same(shared[f"{strategy} {name}"], alone[name])


def test_control_ratios_change_the_curve(alone: Any) -> None:
    ratios, plain = (alone[name]["losses"] for name in ("learning-rate ratios", "full"))
    assert ratios[0] == plain[0]
    assert ratios != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("name", OFFLOADED)
def test_offload_changes_nothing(shared: Any, alone: Any, name: str) -> None:
    same(shared[name], alone["full"])


@pytest.mark.parametrize("strategy", ["fsdp", "zero-2"])
def test_control_weighting_a_worker_changes_the_curve(shared: Any, strategy: str) -> None:
    pairs = zip(shared[f"{strategy} full"]["losses"], shared[f"{strategy} control"]["losses"], strict=True)
    assert max(abs(right - wrong) for right, wrong in pairs) > 1e-4


@pytest.mark.parametrize("strategy", SHARED)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_artifact_is_that_of_one_process(
    shared: Any, made: Any, alone: Any, strategy: str, name: str
) -> None:
    from safetensors.torch import load_file

    file = "model/model.safetensors" if name == "full" else "adapter/adapter_model.safetensors"
    folders = [made[2] / which / name for which in (strategy, "one")]
    ours, theirs = (load_file(folder / file) for folder in folders)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        # AdamW divides a gradient near 0 by its own size, which enlarges rounding there.
        assert ours[key].numpy() == pytest.approx(value.numpy(), abs=5e-5), key
    config = "config.json" if name == "full" else "adapter_config.json"
    written = [json.loads((folder / file).with_name(config).read_text()) for folder in folders]
    for one in written:
        one["target_modules"] = sorted(one.get("target_modules", []))  # PEFT writes a set
    assert written[0] == written[1]


def plain_loss(folder: Path, tokens: Any) -> float:
    """The evaluation loss by transformers alone, one document at a time."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    split = tokens.split("evaluation")
    total, count = 0.0, 0
    for index in range(len(split)):
        example = split.example(index)
        ids = torch.from_numpy(example.input_ids.astype("int64"))
        with torch.no_grad():
            logits = model(ids[None]).logits[0].float()
        for start, end in example.spans.tolist():
            start = max(start, 1)
            total += float(
                functional.cross_entropy(logits[start - 1 : end - 1], ids[start:end], reduction="sum")
            )
            count += end - start
    return total / count


@pytest.mark.parametrize("strategy", SHARED)
def test_plain_transformers_gives_the_loss_of_the_shared_model(shared: Any, made: Any, strategy: str) -> None:
    model, tokens, folder = made
    (evaluated,) = shared[f"{strategy} full"]["evaluations"]
    assert plain_loss(folder / strategy / "full" / "model", tokens) == pytest.approx(evaluated, abs=1e-5)
    assert abs(plain_loss(model, tokens) - evaluated) > 1e-2, "the control: the base model"
