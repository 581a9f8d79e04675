"""A quantized base is never changed, and the saved adapter gives the trained model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.data.token_store import TokenStore
from tailor.models.collator import Collator
from tailor.models.load import load_network
from tailor.models.quantization import with_one_mode
from tailor.plan import Plan
from tailor.spec.model import Model, Quantize
from tailor.store import Store, run_folder
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost
from tests.helpers.models import byte_tokenizer, tiny_llama
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
            session.model.train()
            self.in_training = session.model.logits(Collator(split, session.model.layout)([(0,)]))
            session.model.eval()
        self.in_training = self.in_training[:, : split.lengths[0]]


def train(folder: Path, kind: str | None, **adapter: Any) -> tuple[Plan, Watch]:
    model = tiny_llama(folder / "model")
    tokens = make_store(folder / "tokens", [20, 30, 40, 25] * 4)
    quantize = {"type": kind} if kind else None
    plan = make_plan(
        model,
        tokens,
        folder / "run",
        model={"quantize": quantize, "adapter": {**LORA, **adapter}},
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
    assert torch.equal(watch.in_training, watch.logits["end"]), "training and inference use the same kernels"
    moved = (watch.logits["end"] - watch.logits["start"]).norm() / watch.logits["start"].norm()
    assert moved > 0.01, "the control: training changed the model"

    base = load_network(plan.model, dtype=torch.float32, device=torch.device("cpu"))
    reloaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    ids = torch.tensor(
        TokenStore.open(plan.tokens_url).split("train").example(0).input_ids[None].astype("int64")
    )
    with torch.no_grad():
        logits = reloaded(ids).logits
        assert (logits - watch.logits["end"]).norm() <= 1e-5 * logits.norm()
        answer = reloaded.generate(ids[:, :4], max_new_tokens=6, do_sample=False, eos_token_id=-1)
        assert torch.equal(reloaded.train()(answer).logits[0, 3:-1].argmax(-1), answer[0, 4:])


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


def eight_bit(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LLM.int8()'s rounding of each row (arXiv 2208.07339, 3.1): integers, and the scale of each row."""
    scales = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scales).round(), scales


def llm_int8(x: torch.Tensor, weight: torch.Tensor, threshold: float = 6.0) -> torch.Tensor:
    """The matrix product of LLM.int8(): columns with an outlier in 16 bits, all others in 8 bits."""
    integers, scales = eight_bit(weight)
    outliers = (x.abs() > threshold).any(0)
    rounded, of_rows = eight_bit(x.half().float() * ~outliers)
    regular = (rounded @ integers.T) * of_rows * scales.T
    return regular + (x * outliers) @ (integers * scales).T


def test_8_bit_layers_compute_in_inference_as_in_training() -> None:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-127, 128, (48, 96), generator=generator).float()
    integers[:, 0] = 127  # the largest of each row
    weight = integers / 64  # exact in 8 bits
    x = torch.randn(32, 96, generator=generator)
    x[3, 5], x[7, 40] = 30.0, -12.0
    expected = x @ weight.T
    layer = Linear8bitLt(96, 48, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    control = layer.eval()(x)
    assert distance(control, llm_int8(x, weight)) < 1e-3, "the control: bitsandbytes rounds the activations"
    assert distance(control, expected) > 5e-3
    with_one_mode(layer)
    for training in (True, False):
        assert distance(layer.train(training)(x), expected) < 1e-6
        assert layer.training is training
    inputs = x.clone().requires_grad_()
    layer.eval()(inputs).sum().backward()
    assert inputs.grad is not None
    assert distance(inputs.grad, weight.sum(0).expand_as(x)) < 1e-6


def distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


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


def test_dora_on_an_8_bit_base_trains_as_on_its_dequantized_weights(tmp_path: Path) -> None:
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM

    quantized, watch = train(tmp_path / "int8", "int8", dora=True)
    base = tmp_path / "model"
    network: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "int8" / "model", dtype=torch.float32)
    for name, module in network.named_modules():
        if name.endswith("_proj"):
            rows, scales, _ = bnb.functional.int8_vectorwise_quant(module.weight.data.half())
            module.weight.data = bnb.functional.int8_vectorwise_dequant(rows, scales)
    network.save_pretrained(base)
    byte_tokenizer(base)
    tokens = TokenStore.open(quantized.tokens_url)
    model = {"adapter": {**LORA, "dora": True}}
    plain = Watch()
    plan = make_plan(base, tokens, tmp_path / "run", model=model, optim={"learning_rate": 2e-2})
    loop.run(plan, PlainHost(), [plain])
    trained, expected = watch.logits["end"], plain.logits["end"]
    assert (trained - expected).norm() <= 1e-3 * expected.norm()
    assert (trained - watch.logits["start"]).norm() > 1e-2 * trained.norm(), (
        "the control: training changed it"
    )
