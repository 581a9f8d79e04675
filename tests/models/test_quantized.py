"""A quantized base is never changed, and the saved adapter gives the trained model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.data.token_store import TokenStore
from tailor.models.documents import Collator
from tailor.models.load import load_network
from tailor.plan import Plan
from tailor.spec.model import Model, Quantize
from tailor.store import Store, run_folder
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store


class Watch:
    """A probe that keeps the model's frozen bytes and its logits."""

    def __init__(self) -> None:
        self.frozen: dict[str, dict[str, torch.Tensor]] = {}
        self.logits: dict[str, torch.Tensor] = {}

    def __call__(self, session: Session, when: str, step: int) -> None:
        self.frozen[when] = {
            name: p.detach().clone() for name, p in session.model.named_parameters() if not p.requires_grad
        }
        self.weights = session.model.weights()
        split = session.tokens.split("train")
        session.model.eval()
        with torch.no_grad():
            logits = session.model.logits(Collator(split, session.model.layout)([(0,)]))
            self.logits[when] = logits[:, : split.lengths[0]]


def train(folder: Path, kind: str | None) -> tuple[Plan, Watch]:
    model = tiny_llama(folder / "model")
    tokens = make_store(folder / "tokens", [20, 30, 40, 25] * 4)
    quantize = {"type": kind} if kind else None
    plan = make_plan(
        model,
        tokens,
        folder / "run",
        model={"quantize": quantize, "adapter": LORA},
        optim={"learning_rate": 2e-2},
    )
    watch = Watch()
    loop.run(plan, PlainHost(), [watch])
    return plan, watch


@pytest.mark.parametrize("kind", ["nf4", "int8", None], ids=["4-bit", "8-bit", "plain"])
def test_base_unchanged_and_adapter_reloads(tmp_path: Path, kind: str | None) -> None:
    from peft import PeftModel

    plan, watch = train(tmp_path, kind)
    assert watch.weights == (8_192, 107_456 + 8_192, 107_456 + 8_192)
    stored = {p.dtype for p in watch.frozen["start"].values() if p.ndim == 2}
    assert {"nf4": torch.uint8, "int8": torch.int8, None: torch.float32}[kind] in stored
    for name, before in watch.frozen["start"].items():
        assert torch.equal(before, watch.frozen["end"][name]), name
    moved = (watch.logits["end"] - watch.logits["start"]).norm() / watch.logits["start"].norm()
    assert moved > 0.01, "the control: training changed the model"

    base = load_network(plan.model, dtype=torch.float32, device=torch.device("cpu"))
    reloaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    ids = TokenStore.open(plan.tokens_url).split("train").example(0).input_ids
    with torch.no_grad():
        logits = reloaded(torch.tensor(ids[None].astype("int64"))).logits
    assert (logits - watch.logits["end"]).norm() <= 1e-5 * logits.norm()


@pytest.mark.parametrize("repacks", [False, True], ids=["as loaded", "control: repacking"])
def test_inference_leaves_a_4_bit_layer_able_to_train(tmp_path: Path, repacks: bool) -> None:
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    spec = Model(path=str(tiny_llama(tmp_path)), quantize=Quantize())
    network = load_network(spec, dtype=torch.bfloat16, device=torch.device("cpu"))
    layer = next(module for module in network.modules() if isinstance(module, Linear4bit))
    inputs = torch.randn(1, 4, layer.in_features, dtype=torch.bfloat16)
    if repacks:
        layer.support_avx512bf16_for_cpu = has_avx512bf16()
    before = layer.weight.detach().clone()
    layer.eval()
    with torch.no_grad():
        layer(inputs)
    layer.train()
    layer(inputs.requires_grad_()).sum().backward()
    damaged = repacks and has_avx512bf16()
    assert torch.equal(layer.weight, before) is not damaged
    assert (inputs.grad is not None) is not damaged


def test_control_a_trained_base_does_change(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    tokens = make_store(tmp_path / "tokens", [20, 30, 40, 25] * 4)
    plan = make_plan(model, tokens, tmp_path / "run")
    loop.run(plan, PlainHost())
    saved = run_folder.latest_checkpoint(Store(str(tmp_path / "run")))
    assert saved is not None
    from safetensors.torch import load_file

    before = load_file(model / "model.safetensors")
    after = load_file(Path(saved) / "weights.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["network.lm_head.weight"])


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    from tailor.errors import ModelError

    with pytest.raises(ModelError, match="could not be loaded"):
        load_network(Model(path=str(tmp_path)), dtype=torch.float32, device=torch.device("cpu"))
