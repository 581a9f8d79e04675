"""A packed document is trained exactly as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models import attention, probe
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.spec.model import Model
from tests.helpers.family import DENSE, Family
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.stores import make_store

LENGTHS = [23, 17, 31, 9, 40]
SMALL: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CPU = torch.device("cpu")


def load(path: Path, *, precision: str = "fp32", **options: Any) -> CausalModel:
    spec = Model(path=str(path), **options)
    return load_model(
        spec,
        precision=precision,
        pack=True,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


@torch.no_grad()
def document_losses(model: CausalModel, split: Any, *, packed: bool) -> list[float]:
    """LossSum loss of each document, from one pack of all or from each alone."""
    if not packed:
        return [
            float(model.next_token_loss(Collator(split, model.layout)([(i,)]))) for i in range(len(split))
        ]
    batch = Collator(split, model.layout)([tuple(range(len(split)))])
    hidden = model.hidden(batch).flatten(0, 1)[batch.predicting]
    losses = torch.nn.functional.cross_entropy(model.head(hidden), batch.targets, reduction="none")
    return [float(part.sum()) for part in losses.split([int(n) for n in split.supervised])]


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 8])
def test_packed_equals_alone(path: Path, split: Any, name: str, window: int | None, tmp_path: Path) -> None:
    if window is not None:
        path = sliding(tmp_path, window)
    model = load(path, attention=name)
    assert model.base.config._attn_implementation == (attention.NAME if name == "auto" else name)
    alone = document_losses(model, split, packed=False)
    assert document_losses(model, split, packed=True) == pytest.approx(alone, abs=1e-4)
    assert load(path).layout == "stream"


def sliding(folder: Path, window: int) -> Path:
    """A Mistral whose tokens see `window` tokens back."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        **SMALL,
        initializer_range=0.15,
        sliding_window=window,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def test_control_the_window_matters(tmp_path: Path, split: Any) -> None:
    narrow, wide = (
        document_losses(load(sliding(tmp_path / str(window), window)), split, packed=True)
        for window in (8, 64)
    )
    assert max(abs(a - b) for a, b in zip(narrow, wide, strict=True)) > 1


def test_control_a_contaminated_pack_differs(path: Path, split: Any) -> None:
    model = load(path, attention="sdpa")
    alone = document_losses(model, split, packed=False)
    inputs = model.inputs

    def contaminated(batch: Any) -> dict[str, Any]:
        # What a plain call does: with a cache the reset positions are not taken for documents.
        return {**inputs(batch), "use_cache": True}

    model.inputs = contaminated  # type: ignore[method-assign]
    together = document_losses(model, split, packed=True)
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) > 1
    assert not probe.packs_in_isolation(model, CPU, torch.float32)


def test_gradients_of_a_pack_are_those_of_its_documents(path: Path, split: Any) -> None:
    model = load(path)

    def gradients(rows: list[tuple[int, ...]]) -> torch.Tensor:
        model.zero_grad()
        for row in rows:
            model.next_token_loss(Collator(split, model.layout)([row])).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    packed = gradients([tuple(range(len(split)))])
    alone = gradients([(i,) for i in range(len(split))])
    assert (packed - alone).norm() / alone.norm() < 1e-5


def test_a_model_without_isolated_documents_is_rejected(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=261, hidden_size=64, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match="attend to each other") as error:
        load(tmp_path)
    assert error.value.hint == "set data.pack: false"


def test_the_known_reason_is_named(tmp_path: Path) -> None:
    sizes = {**DENSE, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}
    base = Family("gpt-oss", "gpt_oss", sizes).make(tmp_path / "sinks")
    assert load(base).layout == "stream"
    with pytest.raises(
        ModelError, match="tried: its attention has sinks, which transformers computes without"
    ):
        load(base, attention="eager")
    base = Family(
        "Falcon",
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    ).make(tmp_path / "alibi")
    with pytest.raises(ModelError, match="tried: its position biases"):
        load(base)


def test_a_head_that_is_not_separate_is_found(tmp_path: Path) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=261, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config.logit_scale = 0.25  # the logits are scaled after the head
    CohereForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not model.splits_head
    store = make_store(tmp_path / "tokens", LENGTHS).split("train")
    batch = Collator(store, model.layout)([(0,)])
    logits = model.logits(batch).flatten(0, 1)[batch.predicting]
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    assert float(model.next_token_loss(batch)) == pytest.approx(float(expected), abs=1e-4)


def test_a_quantized_base_needs_no_looser_proof(path: Path) -> None:
    for kind in ("nf4", "int8"):
        model = load(path, quantize={"type": kind}, adapter={"rank": 4})
        assert model.layout == "stream"


def test_a_soft_cap_is_found_in_bf16_too(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **SMALL,
        head_dim=16,
        initializer_range=0.15,
        final_logit_softcapping=30.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path, precision="bf16")
    assert not model.splits_head


def test_a_mixture_of_experts_packs(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **SMALL,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert load(tmp_path).layout == "stream"


def test_missing_weights_are_rejected(tmp_path: Path, path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(path, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"weights of LlamaForCausalLM lack 1 tensors, for example lm_head.weight"
    ):
        load(broken)


@pytest.mark.parametrize(
    ("tied", "quantize", "names", "says"),
    [
        (True, None, ["embed_tokens"], "ties its embedding and its output head"),
        (False, {"type": "nf4"}, ["down_proj"], "quantized and cannot be trained"),
        (False, None, ["nothing"], "but LlamaForCausalLM has no module of that name"),
    ],
)
def test_modules_that_cannot_be_trained_beside(
    tmp_path: Path, tied: bool, quantize: dict[str, str] | None, names: list[str], says: str
) -> None:
    model = tiny_llama(tmp_path, tie_word_embeddings=tied)
    with pytest.raises(ModelError, match=says):
        load(model, quantize=quantize, adapter={"rank": 4, "modules_to_save": names})


def test_damaged_and_foreign_weights_are_named(tmp_path: Path, path: Path) -> None:
    import json
    import shutil

    shutil.copytree(path, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="the weights are damaged"):
        load(tmp_path / "cut")
    shutil.copytree(path, tmp_path / "foreign")
    config = tmp_path / "foreign" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 96}))
    with pytest.raises(
        ModelError, match=r"has the shape \(.*128.*\) in the weights, and \(.*96.*\) in config.json"
    ):
        load(tmp_path / "foreign")


def test_all_linear_leaves_out_modules_that_are_trained_in_full(path: Path) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = load(path, adapter={"rank": 4, "modules_to_save": ["down_proj"]})
    adapted = {
        name.rsplit(".", 1)[-1] for name, m in model.base.named_modules() if isinstance(m, BaseTunerLayer)
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    in_full = {name for name in trained if "lora" not in name}
    assert len(in_full) == 2
    assert all(name.endswith("down_proj.modules_to_save.default.weight") for name in in_full)
