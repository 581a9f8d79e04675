"""Adapters on routed experts: in every family counted, trained, saved for plain PEFT, merged and averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.average import average
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.models.experts.stacks import stacks
from tailor.models.outline import build, read
from tailor.spec.adapter import Adapter
from tailor.spec.model import Model
from tailor.store import Store
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import byte_tokenizer, load_model
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

LENGTHS = [23, 17, 31, 9]
ADAPTER: dict[str, Any] = {"rank": 4, "alpha": 8, "experts": True}
IN_CI = ("mixtral", "glm4_moe")
"""One whose experts the files store one by one under other names, one with shared experts that PEFT alone confuses."""
CASES = [name if name in IN_CI else pytest.param(name, marks=pytest.mark.soak) for name in MIXTURES]
IDS = torch.tensor([[1, *range(40, 70)]])


class Watch:
    """The logits of the trained model."""

    @torch.no_grad()
    def __call__(self, session: Session, when: str, step: int) -> None:
        network = session.model.network.eval()
        chosen = session.model.base.config._attn_implementation
        session.model.base.set_attn_implementation("eager")
        self.logits = network(input_ids=IDS, use_cache=False).logits
        session.model.base.set_attn_implementation(chosen)
        self.adapted = {name.split("lora_A")[0] for name, _ in network.named_parameters() if "lora_A" in name}


def load(path: Path, **adapter: Any) -> Any:
    return load_model(
        Model(path=str(path), adapter=Adapter(**{**ADAPTER, **adapter})),
    )


def train(base: Path, run: Path, seed: int = 0, quantize: str | None = None, **adapter: Any) -> Watch:
    watch = Watch()
    model: dict[str, Any] = {"adapter": {**ADAPTER, **adapter}}
    if quantize is not None:
        model["quantize"] = {"type": quantize}
    plan = make_plan(
        base,
        make_store(run.parent / "tokens", LENGTHS),
        run,
        model=model,
        data={"pack": False},
        optim={"learning_rate": 2e-2},
        train={"steps": 2, "micro_batch_size": 2, "batch_size": 4, "seed": seed},
    )
    Store(str(run)).write_json("plan.json", plan.as_dict())
    loop.run(plan, PlainHost(), [watch])
    return watch


def plain_logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    """Of plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        network = PeftModel.from_pretrained(network, str(adapter))
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(input_ids=IDS, use_cache=False).logits
    return logits


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("name", CASES)
def test_trained_saved_merged_and_averaged(tmp_path: Path, name: str) -> None:
    base = MIXTURES[name].make(tmp_path / "base")
    first = train(base, tmp_path / "a", router=True)
    second = train(base, tmp_path / "b", seed=1, router=True)
    original = plain_logits(base)
    assert distance(first.logits, original) > 1e-2, "training has an effect"
    assert distance(plain_logits(base, tmp_path / "a" / "adapter"), first.logits) < 1e-5

    merge(str(tmp_path / "a"), str(tmp_path / "merged"))
    assert distance(plain_logits(tmp_path / "merged"), first.logits) < 1e-5
    merge(str(tmp_path / "b"), str(tmp_path / "by-layers"), check="layers")
    assert distance(plain_logits(tmp_path / "by-layers"), second.logits) < 1e-5

    third = train(base, tmp_path / "c", seed=2, router=True)
    average([str(tmp_path / "b"), str(tmp_path / "c")], str(tmp_path / "mean"), weights=[0.25, 0.75])
    mean = plain_logits(base, tmp_path / "mean")
    assert min(distance(mean, each) for each in (second.logits, third.logits, original)) > 1e-3
    merge(str(tmp_path / "mean"), str(tmp_path / "merged-mean"), base=str(base))
    assert distance(plain_logits(tmp_path / "merged-mean"), mean) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_plan_counts_what_is_trained(tmp_path: Path, name: str) -> None:
    base = MIXTURES[name].make(tmp_path / "base")
    spec = Model(path=str(base), adapter=Adapter(**ADAPTER, router=True))
    network = build(spec)
    outline = read(network, spec)
    trained = load(base, router=True).weights().trained
    assert outline.adapter_parameters(spec.adapter) == trained  # type: ignore[arg-type]
    found = stacks(network)
    assert sum(stack.experts for stack in found) in (8, 16), (
        "both stacks of one or two layers of four experts"
    )
    fewer = Adapter(**{**ADAPTER, "experts": None}, router=True)
    assert outline.adapter_parameters(fewer) < trained


def test_ranks_of_modules_that_peft_takes_for_experts(tmp_path: Path) -> None:
    """Plain PEFT gives the modules that the file names by their weights their own ranks and scales too."""
    base = MIXTURES["glm4_moe"].make(tmp_path / "base")
    trained = train(
        base, tmp_path / "a", rank_pattern={"down_proj": 2}, alpha_pattern={"shared_experts.up_proj": 3.0}
    )
    assert distance(plain_logits(base, tmp_path / "a" / "adapter"), trained.logits) < 1e-5
    merge(str(tmp_path / "a"), str(tmp_path / "merged"))
    assert distance(plain_logits(tmp_path / "merged"), trained.logits) < 1e-5


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_peft_itself_names_routers_and_stacks(tmp_path: Path, name: str) -> None:
    """PEFT's own `all-linear` with `target_parameters`: the router, which is no linear module, is named by its weight."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = MIXTURES[name].make(tmp_path / "base")
    network: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stacks_of = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", target_parameters=stacks_of)
    adapted: Any = get_peft_model(network, config)
    assert "gate.weight" in config.target_parameters  # type: ignore[operator]
    torch.manual_seed(0)
    for name_of, weight in adapted.named_parameters():
        if "lora_B" in name_of:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer(tmp_path / "adapter")
    expected = plain_logits(base, tmp_path / "adapter")
    assert distance(expected, plain_logits(base)) > 1e-2
    with torch.no_grad():
        loaded = load_run(str(tmp_path / "adapter")).model(input_ids=IDS, use_cache=False).logits
    assert distance(loaded, expected) < 1e-5
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert distance(plain_logits(tmp_path / "merged"), expected) < 1e-5
