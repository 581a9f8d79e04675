"""Rotary positions: the live module holds the closed forms, and what is saved is read right by plain transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.artifacts.average import average
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.encode.tokenizer_files import own_files
from tailor.errors import ModelError
from tailor.export.folder import export
from tailor.export.request import Request
from tailor.models import attention, rope
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate
from tailor.models.load import load_network
from tailor.models.sharded_load import load_sharded
from tailor.spec.model import Model
from tests.helpers.models import tiny_llama
from tests.helpers.trained_runs import finished_run

L, WIDTH = 64, 16
KINDS: dict[str, dict[str, Any]] = {
    "theta": {"name": "theta", "theta": 2e6, "length": 4 * L},
    "linear": {"name": "linear", "factor": 4, "original_length": L},
    "dynamic": {"name": "dynamic", "factor": 4, "original_length": L},
    "yarn": {"name": "yarn", "factor": 4, "original_length": L, "theta": 5000.0},
    "llama3": {"name": "llama3", "factor": 8, "original_length": L, "length": 4 * L},
    "longrope": {
        "name": "longrope",
        "original_length": L,
        "length": 4 * L,
        "short_factor": [1.0 + number / 10 for number in range(WIDTH // 2)],
        "long_factor": [1.0 + 3 * number for number in range(WIDTH // 2)],
    },
}
TOKENS = torch.randint(5, 261, (1, 4 * L), generator=torch.Generator().manual_seed(3))


def by_hand(kind: str, tokens: int) -> tuple[list[float], float]:
    """The papers' formulas, frequency by frequency, without the code under test."""
    spec = KINDS[kind]
    theta = spec.get("theta", 10000.0)
    found, attention = [], 1.0
    for number in range(WIDTH // 2):
        plain = theta ** (-2 * number / WIDTH)
        turns = L * plain / (2 * math.pi)
        if kind == "linear":
            plain /= 4
        elif kind == "dynamic" and tokens > L:
            grown = theta * (4 * tokens / L - 3) ** (WIDTH / (WIDTH - 2))
            plain = grown ** (-2 * number / WIDTH)
        elif kind == "yarn":
            place = [WIDTH * math.log(L / (at * 2 * math.pi)) / (2 * math.log(theta)) for at in (32, 1)]
            low, high = max(math.floor(place[0]), 0), min(math.ceil(place[1]), WIDTH - 1)
            share = min(1.0, max(0.0, (number - low) / (high - low)))
            plain, attention = plain / 4 * share + plain * (1 - share), 0.1 * math.log(4) + 1
        elif kind == "llama3":
            if turns < 1:
                plain /= 8
            elif turns <= 4:
                share = (turns - 1) / 3
                plain = plain / 8 * (1 - share) + plain * share
        elif kind == "longrope":
            plain /= spec["long_factor" if tokens > L else "short_factor"][number]
            attention = math.sqrt(1 + math.log(4) / math.log(L))
        found.append(plain)
    return found, attention


def live(network: Any, tokens: int) -> tuple[np.ndarray, float]:
    """As a pass over so many tokens leaves the module."""
    module = network.model.rotary_emb
    with torch.no_grad():
        network(TOKENS[:, :tokens], use_cache=False)
    return module.inv_freq.double().numpy(), float(module.attention_scaling)


def load(folder: Path, spec: dict[str, Any] | None) -> Any:
    model = Model.model_validate({"path": str(folder), "rope": spec})
    return load_network(model, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=L)


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_module_holds_the_closed_form(kind: str, base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = load(base, KINDS[kind])
    for tokens in (L // 2, 3 * L):
        frequencies, attention = live(network, tokens)
        wanted, factor = by_hand(kind, tokens)
        assert np.abs(frequencies / np.array(wanted) - 1).max() <= 1e-6
        assert abs(attention - factor) <= 1e-6
    network.save_pretrained(tmp_path)
    plain, unscaled = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path, base))
    with torch.no_grad():
        expected, again, other = (one(TOKENS).logits for one in (network, plain, unscaled))
    assert torch.equal(again, expected)
    assert (other - expected).norm() > 0.01 * expected.norm(), "control: the base is another model"


def test_control_incomplete_parameters_give_other_frequencies(base: Path) -> None:
    """Without the original length, and after the load: silently other frequencies, which the proof refuses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, max_position_embeddings=4 * L)
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}
    frequencies, _ = live(AutoModelForCausalLM.from_pretrained(base, config=config), L)
    assert np.abs(frequencies / np.array(by_hand("yarn", L)[0]) - 1).max() > 0.5

    late = load(base, None)
    spec = Model.model_validate({"path": str(base), "rope": KINDS["yarn"]}).rope
    assert spec is not None
    rope.write(late.config, spec, str(base))
    with pytest.raises(ModelError, match="the frequencies of rotary_emb in LlamaForCausalLM differ"):
        rope.prove(late, spec)
    good = load(base, KINDS["yarn"])
    good.model.rotary_emb.inv_freq *= 1 + 2e-6
    with pytest.raises(ModelError, match="differ from yarn at "):
        rope.prove(good, spec)


def test_dynamic_frequencies_do_not_depend_on_what_came_before(base: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    network = load(base, KINDS["dynamic"])
    network.config.save_pretrained(base.parent / "dynamic")
    stock = AutoModelForCausalLM.from_pretrained(
        base, config=AutoConfig.from_pretrained(base.parent / "dynamic")
    )
    changes = {}
    for name, one in (("tailor", network), ("stock", stock)):
        with torch.no_grad():
            first = one(TOKENS[:, : 2 * L], use_cache=False).logits
            one(TOKENS, use_cache=False)
            second = one(TOKENS[:, : 2 * L], use_cache=False).logits
        changes[name] = float((first - second).norm() / first.norm())
    assert changes["tailor"] == 0
    assert changes["stock"] > 1e-3, "control: transformers keeps the longest sequence's"


@pytest.mark.parametrize(("kind", "apart"), [("yarn", True), ("dynamic", False), ("longrope", False)])
def test_a_longer_document_changes_the_frequencies_of_its_pack(kind: str, apart: bool, base: Path) -> None:
    """Why recipes that pack are refused for two kinds: the control of the rule."""
    network = load(base, KINDS[kind])
    attention.register()
    network.set_attn_implementation(attention.NAME)
    model = CausalModel(network, layout="stream")
    ids = TOKENS[0].numpy()
    short, long = (Document(ids[:size], ids[1 : size + 1]) for size in (L // 2, 3 * L))
    with torch.no_grad():
        alone = model.hidden(collate([[short]], "stream"))[0, : L // 2]
        packed = model.hidden(collate([[short, long]], "stream"))[0, : L // 2]
    off = float((alone - packed).norm() / alone.norm())
    assert (off < 1e-5) if apart else (off > 1e-2)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_a_model_loaded_in_parts_has_them_too(kind: str, base: Path) -> None:
    """For the strategies that share weights out: the network is built empty, and filled from the loaded one."""
    model, _ = load_sharded(
        Model.model_validate({"path": str(base), "rope": KINDS[kind]}),
        lambda module: None,
        rank=0,
        world=1,
        device=torch.device("cpu"),
        precision="fp32",
        frozen_dtype="float32",
        pack=False,
        activation_checkpointing=0,
        activation_offloading=False,
        tiled_mlp=False,
        seed=0,
    )
    model.base.set_attn_implementation("sdpa")
    for tokens in (3 * L, L // 2):
        frequencies, _ = live(model.base, tokens)
        assert np.abs(frequencies / np.array(by_hand(kind, tokens)[0]) - 1).max() <= 1e-6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {**KINDS["yarn"], "original_length": 32},
            r"original_length is 32, but the original maximum length of .* is 64 tokens",
        ),
        (
            {**KINDS["longrope"], "long_factor": [1.0], "short_factor": [1.0]},
            r"short_factor has 1 numbers, but .* has 8 RoPE frequencies",
        ),
    ],
)
def test_rope_that_does_not_match_the_base_is_rejected(
    spec: dict[str, Any], message: str, base: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load(base, spec)


def test_models_that_cannot_be_scaled(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig, GPT2Config

    for number, config in enumerate(
        (GPT2Config(n_embd=16, n_layer=1, n_head=2), Gemma3TextConfig(hidden_size=16, num_hidden_layers=1))
    ):
        folder = tmp_path / str(number)
        config.save_pretrained(folder)
        text = json.loads((folder / "config.json").read_text())
        with pytest.raises(
            ModelError, match=r"no rotary position embeddings|different RoPE parameters for its layer types"
        ):
            rope.plan.extended(text, Model.model_validate({"path": "x", "rope": KINDS["theta"]}).rope, "x")
        with pytest.raises(
            ModelError, match=r"no rotary position embeddings|different RoPE parameters for its layer types"
        ):
            load(folder, KINDS["theta"])


def test_a_partly_rotated_model_keeps_its_part(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=L, rotary_pct=0.5,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    network = load(tmp_path, {"name": "linear", "factor": 2, "original_length": L})
    module = network.gpt_neox.rotary_emb
    assert module.inv_freq.shape == (8,), "half of 32, in pairs"
    assert float(module.inv_freq[0]) == 0.5


def test_the_card_of_an_adapter_loads_it_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The code in the exported card, run as it stands, is the model that was trained."""
    run = finished_run(tmp_path, {"adapter": {"rank": 4}, "rope": KINDS["linear"]}, max_position_embeddings=L)
    out = Path(export(str(run), str(tmp_path / "out"), Request()))
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "AutoPeftModel" not in code
    code = code.replace('"PATH"', repr(str(out))).replace('"BASE"', repr(str(tmp_path / "base")))
    found: dict[str, Any] = {}
    exec(code, found)
    with torch.no_grad():
        expected = load_run(str(run)).model(TOKENS).logits
        assert (found["model"].eval()(TOKENS).logits - expected).norm() < 1e-5 * expected.norm()
    with pytest.raises(ModelError, match=r"ignores the RoPE parameters of model\.rope"):
        export(str(run), str(tmp_path / "ollama"), Request(form="ollama", weights="adapter"))


def test_an_adapter_carries_the_rope_of_its_base(tmp_path: Path) -> None:
    """Plain peft with the config.json beside the adapter, tailor's own loading, a merge and an average: one model."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    model = {"adapter": {"rank": 4, "alpha": 8}, "rope": KINDS["yarn"]}
    run = finished_run(tmp_path, model, max_position_embeddings=L)
    adapter = run / "adapter"
    loaded = load_run(str(run))
    assert loaded.context == 4 * L
    with torch.no_grad():
        expected = loaded.model(TOKENS).logits
        own = AutoConfig.from_pretrained(adapter)
        network = AutoModelForCausalLM.from_pretrained(tmp_path / "base", config=own)
        plain = PeftModel.from_pretrained(network, adapter)(TOKENS).logits
        bare = AutoPeftModelForCausalLM.from_pretrained(adapter)(TOKENS).logits
    assert torch.equal(plain, expected)
    assert (bare - expected).norm() > 0.01 * expected.norm(), (
        "control: the base's own config is another model"
    )

    merged = merge(str(run), str(tmp_path / "merged"))
    assert merged.figures.kl < 1e-7
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(TOKENS).logits
    assert (logits - expected).norm() < 1e-5 * expected.norm()

    url = average([str(run), str(adapter)], str(tmp_path / "mean"))
    with torch.no_grad():
        assert (load_run(url).model(TOKENS).logits - expected).norm() < 1e-5 * expected.norm()
    step = next((run / "checkpoints").iterdir())
    url = average([str(step), str(run)], str(tmp_path / "mean2"))
    assert AutoConfig.from_pretrained(url).rope_parameters["rope_type"] == "yarn"
    values = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps({**values, "rope": None}))
    with pytest.raises(ModelError, match="different RoPE parameters"):
        average([str(step), str(adapter)], str(tmp_path / "mean3"))


def test_a_whole_model_carries_its_rope_and_averages_with_its_like(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = finished_run(tmp_path, {"rope": KINDS["llama3"]}, max_position_embeddings=L)
    plain = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    step = str(next((run / "checkpoints").iterdir()))
    mean = AutoModelForCausalLM.from_pretrained(average([step, step], str(tmp_path / "mean")))
    with torch.no_grad():
        expected = load_run(str(run)).model(TOKENS).logits
        for one in (plain, mean):
            assert (one(TOKENS).logits - expected).norm() < 1e-5 * expected.norm()
    assert plain.config.rope_parameters == mean.config.rope_parameters
    assert plain.config.rope_parameters["rope_type"] == "llama3"
    assert plain.config.max_position_embeddings == mean.config.max_position_embeddings == 4 * L
    for name in own_files(run / "model"):  # its chat template, too
        if (run / "model" / name).is_file():
            shutil.copy(run / "model" / name, tmp_path / "base")
    with pytest.raises(ModelError, match="different RoPE parameters"):
        average([str(run / "model"), str(tmp_path / "base")], str(tmp_path / "mixed"))
    assert average([str(run / "model"), str(tmp_path / "mean")], str(tmp_path / "alike")), "the control"
