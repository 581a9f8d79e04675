"""Each `model.adapter.type`: trained as plain PEFT does, saved for plain PEFT, merged with the same logits."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.average import average
from tailor.artifacts.inputs import open_input
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.errors import ModelError, StoreError
from tailor.models import probe
from tailor.plan.outline import Outline
from tailor.spec.adapter import Adapter
from tailor.spec.adapter_kinds import KINDS
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.train import Train
from tailor.store import Store
from tailor.train import loop
from tailor.train.preflight import preflight
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.stores import make_store
from tests.train.test_adapter_init import (
    Watch,
    adapted,
    difference,
    logits,
    plain,
    plan_of,
    tiny_gpt2,
    trained,
)

PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 24}}
CASES: dict[str, dict[str, Any]] = {
    "loha": {"type": "loha", **PATTERNS},
    "lokr": {"type": "lokr", **PATTERNS, "modules_to_save": ["lm_head"]},
    "oft": {"type": "oft", "oft_block_size": 16},
    "ia3": {"type": "ia3"},
    "vera": {"type": "vera", "rank": 8},
}
IN_CI = [kind if kind == "ia3" else pytest.param(kind, marks=pytest.mark.soak) for kind in CASES]
"""Cases of the longer tests: one runs in CI."""
RATES = {"ia3": 0.3, "vera": 0.3}
assert {"lora", *CASES} == set(KINDS), "every kind has a case"
Made = tuple[Path, Any]


def settings(kind: str) -> dict[str, Any]:
    """The case without the ranks of plan_of where the kind has none."""
    base = {key: value for key, value in (("rank", 4), ("alpha", 8)) if key in KINDS[kind].keys}
    return {**base, **CASES[kind]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("kinds")
    base = tiny_llama(folder / "model", attention_bias=True, num_hidden_layers=1)
    return base, make_store(folder / "tokens", [20, 33, 41, 25] * 9)


class Isolation:
    """Whether packed documents are isolated with the trained adapter."""

    def __call__(self, session: Session, when: str, step: int) -> None:
        session.model.eval()
        self.holds = probe.packs_in_isolation(session.model, torch.device("cpu"), torch.float32)


def run(made: Made, to: Path, kind: str, host: PlainHost | None = None, *probes: Any, **sections: Any) -> Any:
    optim = {"learning_rate": RATES.get(kind, 0.02)}
    plan = plan_of(made, to, settings(kind), **{"optim": optim, **sections})
    loop.run(plan, host or PlainHost(), list(probes))
    return plan


@pytest.mark.parametrize("kind", IN_CI)
def test_the_saved_adapter_is_the_trained_model_in_plain_peft(made: Made, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    watch, isolation, host = Watch(), Isolation(), PlainHost()
    plan = run(made, tmp_path / "run", kind, host, watch, isolation)
    assert isolation.holds
    assert difference(logits(plain(made[0])), watch.logits) > 0.01, "control: training changed the model"
    assert torch.equal(watch.base, logits(plain(made[0]))), "the reference model is the base"
    saved = str(tmp_path / "run" / "adapter")
    assert difference(logits(PeftModel.from_pretrained(plain(made[0]), saved).eval()), watch.logits) < 1e-5
    assert difference(logits(load_run(str(tmp_path / "run")).model), watch.logits) < 1e-5
    merged = merge(saved, str(tmp_path / "merged"))
    assert merged.figures.kl < 1e-7
    assert difference(logits(plain(tmp_path / "merged")), watch.logits) < 1e-5
    with pytest.raises(ModelError, match="cannot be verified by layers"):
        merge(saved, str(tmp_path / "other"), check="layers")
    with pytest.raises(ModelError, match=r"adapter; only updates of LoRA adapters can be averaged"):
        average([saved, saved], str(tmp_path / "average"))
    Store(plan.run_url).write_json("plan.json", plan.as_dict())
    with ExitStack() as stack:
        step = f"{tmp_path}/run/checkpoints/step-00000006"
        if kind == "vera":
            with pytest.raises(ModelError, match="lacks the random matrices of its VeRA adapter"):
                open_input(step, tmp_path / "scratch", stack)
            return
        other = open_input(step, tmp_path / "scratch", stack)
        network = PeftModel.from_pretrained(plain(made[0]), str(other.folder)).eval()
        assert difference(logits(network), watch.logits) < 1e-5


@pytest.mark.parametrize("kind", CASES)
def test_training_equals_that_of_plain_peft(made: Made, kind: str) -> None:
    import peft

    case = settings(kind)
    alphas = {"r": 4, "alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 24}}
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    configs = {
        "loha": lambda: peft.LoHaConfig(target_modules=linear, **alphas),
        "lokr": lambda: peft.LoKrConfig(target_modules=linear, modules_to_save=["lm_head"], **alphas),
        "oft": lambda: peft.OFTConfig(target_modules=linear, oft_block_size=16),
        "ia3": lambda: peft.IA3Config(),  # PEFT's own modules for Llama
        "vera": lambda: peft.VeraConfig(target_modules=linear, r=8, projection_prng_key=0),
    }
    torch.manual_seed(3)
    network = peft.get_peft_model(plain(made[0]), configs[kind]())
    ours = adapted(made[0], **case)
    count = sum(
        p.numel() for name, p in ours.named_parameters() if p.requires_grad and "modules_to_save" not in name
    )
    spec = Adapter(**case)
    linears = [
        (name, m) for name, m in plain(made[0]).model.named_modules() if isinstance(m, torch.nn.Linear)
    ]
    assert count == sum(spec.weights(name, m.in_features, m.out_features) for name, m in linears)
    expected = trained(network)
    assert trained(ours) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def _losses(host: PlainHost, made: Made, to: Path, kind: str, micro: int = 1) -> list[float]:
    run(made, to, kind, host, train={"micro_batch_size": micro})
    return host.losses()


@pytest.mark.parametrize("kind", IN_CI)
def test_a_resumed_run_is_bit_equal_and_accumulation_changes_nothing(
    made: Made, tmp_path: Path, kind: str
) -> None:
    whole = _losses(PlainHost(), made, tmp_path / "whole", kind)
    first = PlainHost(stop_after=3)
    run(made, tmp_path / "run", kind, first)
    again = PlainHost(resume_from=str(tmp_path / "run"))
    run(made, tmp_path / "run", kind, again)
    assert [*first.losses(), *again.losses()] == whole
    files = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole")
    ]
    assert files[0] == files[1]
    assert _losses(PlainHost(), made, tmp_path / "four", kind, 4) == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", CASES)
def test_workers_change_nothing(made: Made, tmp_path: Path, kind: str) -> None:
    one = _losses(PlainHost(), made, tmp_path / "one", kind)
    assert run_distributed(_losses, made, tmp_path / "two", kind)[0] == pytest.approx(one, rel=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("kind", [kind for kind in CASES if KINDS[kind].quantized])
def test_a_quantized_base(made: Made, tmp_path: Path, kind: str) -> None:
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    watch = Watch()
    adapter = {"adapter": settings(kind), "quantize": {}, "path": str(base)}
    run((base, made[1]), tmp_path / "run", kind, None, watch, model=adapter)
    assert difference(logits(plain(base)), watch.logits) > 0.02
    assert difference(logits(load_run(str(tmp_path / "run")).model), watch.logits) < 1e-3
    assert merge(str(tmp_path / "run"), str(tmp_path / "merged")).figures.kl < 1e-5


def test_what_a_kind_does_not_support_is_refused(made: Made, tmp_path: Path) -> None:
    for adapter, expected in (
        (
            {"type": "oft", "oft_block_size": 24},
            "oft_block_size: 24 does not divide the 64 inputs of model.layers.0",
        ),
        ({"type": "loha", "target_modules": ["embed_tokens"]}, "LoHa is not supported on model.embed_tokens"),
    ):
        with pytest.raises(ModelError, match=expected):
            adapted(made[0], **adapter)


def test_a_warm_start_needs_the_same_kind(made: Made, tmp_path: Path) -> None:
    run(made, tmp_path / "first", "oft")
    saved = {"warm_start": str(tmp_path / "first")}
    host = PlainHost()
    run(made, tmp_path / "second", "oft", host, model={"adapter": settings("oft"), **saved})
    assert host.losses()[0] < 6
    other = {"adapter": {**settings("oft"), "oft_block_size": 8}, **saved}
    with pytest.raises(
        StoreError, match=r"was trained with model\.adapter\.oft_block_size: 16, this recipe has 8"
    ):
        run(made, tmp_path / "third", "oft", model=other)
    with pytest.raises(StoreError, match="is an adapter of the type OFT, this recipe has LOHA"):
        run(made, tmp_path / "third", "loha", model={"adapter": settings("loha"), **saved})


@pytest.mark.parametrize("kind", IN_CI)
def test_conv1d(tmp_path: Path, kind: str) -> None:
    """GPT-2 stores its weights transposed, and has biases."""
    base = tiny_gpt2(tmp_path / "gpt2")
    names = {"target_modules": ["c_attn", "mlp.c_proj"]}
    adapter = {key: value for key, value in settings(kind).items() if "pattern" not in key} | names
    adapter.pop("modules_to_save", None)
    if kind in ("loha", "lokr", "oft"):
        with pytest.raises(ModelError, match=r"Conv1D.*set type: lora"):
            adapted(base, **adapter)
        return
    watch = Watch()
    tokens = make_store(tmp_path / "tokens", [20, 33, 41, 25] * 9)
    plan = plan_of((base, tokens), tmp_path / "run", adapter, optim={"learning_rate": RATES.get(kind, 0.02)})
    loop.run(plan, PlainHost(), [watch])
    assert difference(logits(plain(base)), watch.logits) > 0.01, "control: training changed the model"
    assert merge(str(tmp_path / "run"), str(tmp_path / "merged")).figures.kl < 1e-7
    assert difference(logits(plain(tmp_path / "merged")), watch.logits) < 1e-5


@pytest.mark.parametrize("kind", CASES)
def test_a_plan_counts_the_trained_weights_from_the_model(made: Made, kind: str) -> None:
    spec = Model.model_validate({"path": str(made[0]), "adapter": settings(kind)})
    found = preflight(spec, Sft(name="sft"), Optim(learning_rate=1e-3), Train())
    assert isinstance(found, Outline)
    assert found.adapter_parameters(spec.adapter) == found.trained  # type: ignore[arg-type]
