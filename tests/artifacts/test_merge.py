"""A merge has the logits of the trained model, or it fails: compared with plain peft and plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailor.artifacts.base_model import Structure
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.merge import merge
from tailor.cli.main import main
from tailor.encode.template import Template
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.tokenizer_files import Original
from tailor.errors import ModelError, StoreError
from tailor.models.load import load_network
from tailor.spec.model import Model, Quantize
from tailor.store import Store
from tests.helpers.adapters import random_adapter
from tests.helpers.families import FAMILIES
from tests.helpers.models import tiny_llama
from tests.helpers.plain_peft import difference, logits_of_adapter, logits_of_model, logits_of_nf4
from tests.helpers.tokenizers import split_tokenizer

NF4 = Quantize(type="nf4")


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({}, False),
        ({"use_rslora": True}, False),
        ({"use_dora": True}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj", "down_proj"]}, False),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}}, False),
        ({}, True),
        ({"target_modules": ["lm_head", "q_proj"]}, True),
        ({"target_modules": ["embed_tokens", "v_proj"]}, True),
    ],
    ids=[
        *("lora", "rslora", "dora", "head in full", "embedding in full", "ranks by module"),
        *("tied", "tied, head adapted", "tied, embedding adapted"),
    ],
)
def test_merged_logits_match_plain_peft(tmp_path: Path, config: dict[str, Any], tied: bool) -> None:
    base = tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    adapter = random_adapter(tmp_path / "adapter", base, **config)
    expected = logits_of_adapter(adapter, base)
    assert difference(logits_of_model(base), expected) > 0.05, "control: the adapter changes the model"
    merged = merge(str(adapter), str(tmp_path / "merged"))
    assert difference(logits_of_model(merged.url), expected) < 1e-5
    assert merged.figures.kl < 1e-7
    assert merged.figures.top1 == 1
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["onto"] == "full"
    assert record["verification"]["max_difference"] < 1e-4
    assert Store(str(tmp_path)).is_committed("merged")
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_quantized_base_is_merged_as_in_training(tmp_path: Path, kind: Any) -> None:
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    adapter = random_adapter(tmp_path / "adapter", base, quantize=Quantize(type=kind), dtype="bfloat16")
    merged = merge(str(adapter), str(tmp_path / "merged"))
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["onto"] == "dequantized"
    with pytest.raises(ModelError, match="its logits differ from those") as caught:
        merge(str(adapter), str(tmp_path / "other"), onto="full", tolerance=1e-12)
    assert "--onto dequantized" in str(caught.value.hint)
    loose = merge(str(adapter), str(tmp_path / "full"), onto="full", tolerance=10)
    assert merged.figures.kl < 1e-6
    assert loose.figures.kl > 1000 * merged.figures.kl, "the wrong precision is shown to differ"
    with pytest.raises(ModelError, match="fails verification"):
        merge(str(adapter), str(tmp_path / "other"), onto="full")
    if kind == "nf4":
        full = merge(str(adapter), str(tmp_path / "full"), dtype="float32")
        expected = logits_of_nf4(adapter, base)
        assert difference(logits_of_model(full.url), expected) < 1e-5
        assert difference(logits_of_adapter(adapter, base), expected) > 1e-2, "control: of the base in full"
    assert not (tmp_path / "other").exists()


def test_a_merge_that_is_wrong_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base)
    right = merge(str(adapter), str(tmp_path / "right"))
    assert difference(logits_of_model(right.url), logits_of_adapter(adapter, base)) < 1e-5
    product = LoraAdapter.product
    monkeypatch.setattr(LoraAdapter, "product", lambda self, module: 0.7 * product(self, module))
    for check in ("logits", "layers"):
        with pytest.raises(ModelError, match="fails verification"):
            merge(str(adapter), str(tmp_path / "wrong"), check=check)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "right"]


def test_a_lost_adapter_is_rejected_even_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base, size=0.003)
    right = merge(str(adapter), str(tmp_path / "right"))
    assert right.figures.adapter_kl < 0.001, "control: under the tolerance"
    assert difference(logits_of_model(right.url), logits_of_adapter(adapter, base)) < 1e-5
    monkeypatch.setattr(LoraAdapter, "product", lambda self, module: torch.zeros(()))
    monkeypatch.setattr(LoraAdapter, "merged", lambda self, module, weight, **_: weight)
    with pytest.raises(ModelError, match="fails verification"):
        merge(str(adapter), str(tmp_path / "wrong"))


def test_only_layers_are_compared(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    for name, options in (("plain", {}), ("dora", {"use_dora": True}), ("nf4", {"quantize": NF4})):
        adapter = random_adapter(tmp_path / name, base, **options)  # type: ignore[arg-type]
        merged = merge(str(adapter), str(tmp_path / f"{name}-merged"), check="layers")
        assert merged.figures.layer_error < 1e-5, name
        if name != "nf4":
            assert difference(logits_of_model(merged.url), logits_of_adapter(adapter, base)) < 1e-5, name
    with pytest.raises(ModelError, match="the relative error of a layer's output"):
        merge(str(adapter), str(tmp_path / "full"), check="layers", onto="full")


def test_the_tokenizer_is_the_adapters(tmp_path: Path) -> None:
    """It keeps its two templates, whatever the base has, and gives the same ids in plain transformers."""
    from transformers import AutoTokenizer

    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base)
    trained = split_tokenizer(tmp_path / "trained", kind="GPT2Tokenizer")
    template = {"name": "model", "text": "D", "tool_use": "T", "end_of_turn_ids": []}
    Original.open(Model(path=str(trained)), trust_remote_code=False).write(adapter, template)
    (base / "chat_template.jinja").write_text("of the base")
    text = "1234 and 12,345"
    ids = load_tokenizer(str(trained)).encode(text)
    assert AutoTokenizer.from_pretrained(trained)(text, add_special_tokens=False)["input_ids"] != ids, (
        "control"
    )
    folder = Path(merge(str(adapter), str(tmp_path / "merged"), check="layers").url)
    assert (folder / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert load_tokenizer(str(folder)).require_template() == Template("model", "D", "T")
    assert AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"] == ids


def test_another_base_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base)
    other = tiny_llama(tmp_path / "other", seed=1)
    assert difference(logits_of_adapter(adapter, other), logits_of_adapter(adapter, base)) > 0.1, "control"
    capsys.readouterr()
    assert main(["merge", str(adapter), "--to", str(tmp_path / "merged"), "--base", str(other)]) == 2
    assert capsys.readouterr().err == (
        f"tailor: {other} is not the base of the adapter at {adapter}: its weights differ from those that the "
        f"adapter was trained on\n  hint: restore the weights of {base}, or give their folder with --base\n"
    )
    assert not (tmp_path / "merged").exists()
    shutil.move(base, tmp_path / "moved")  # the right weights, elsewhere
    merged = merge(str(adapter), str(tmp_path / "merged"), base=str(tmp_path / "moved"))
    assert difference(logits_of_model(merged.url), logits_of_adapter(adapter, tmp_path / "moved")) < 1e-5


def test_one_changed_weight_makes_another_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is not the base of the adapter"):
        merge(str(adapter), str(tmp_path / "merged"))


def test_a_base_of_several_files_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    whole = tiny_llama(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    adapter = random_adapter(tmp_path / "adapter", base)
    expected = logits_of_adapter(adapter, base)
    half = merge(str(adapter), "memory://merges/half")
    folder = Store(half.url).local_path()
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == sorted(
        path.name for path in base.glob("*.safetensors*")
    )
    assert {t.dtype for file in folder.glob("*.safetensors") for t in load_file(file).values()} == {
        torch.bfloat16
    }
    assert 1e-5 < difference(logits_of_model(folder), expected) < 0.05
    full = merge(str(adapter), str(tmp_path / "full"), dtype="float32")
    assert difference(logits_of_model(full.url), expected) < 1e-5
    assert json.loads((tmp_path / "full" / "config.json").read_text())["dtype"] == "float32"
    assert full.figures.kl < half.figures.kl


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base)
    with pytest.raises(StoreError, match="has other files"):
        merge(str(adapter), str(base))
    first = merge(str(adapter), str(tmp_path / "merged"))
    assert merge(str(adapter), str(tmp_path / "merged")).url == first.url  # an earlier merge is replaced


def test_errors_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base, known_base=False)
    capsys.readouterr()

    def error(*words: str) -> str:
        assert main(["merge", *words]) == 2
        return capsys.readouterr().err

    assert error(f"{tmp_path}/adaptr") == (
        f"tailor: {tmp_path}/adaptr does not exist\n  hint: did you mean {adapter}?\n"
    )
    assert error(str(base)) == (
        f"tailor: {base} is a full model: it has no adapter to merge\n"
        "  hint: use it as it is, or give a run that trained an adapter\n"
    )
    assert error(str(adapter)) == (
        f"tailor: {adapter} is not in a run's folder\n  hint: give the output folder with --to\n"
    )
    assert error(str(adapter), "--to", str(tmp_path / "m"), "--onto", "dequantized") == (
        f"tailor: --onto dequantized has no effect: {adapter} was not trained on a quantized base\n"
    )
    shutil.rmtree(base)
    assert error(str(adapter), "--to", str(tmp_path / "m")).startswith(
        f"tailor: the adapter at {adapter} needs its base model {base}: "
    )
    (tmp_path / "recipe.yaml").write_text("")
    assert "is not finished: it has neither adapter/ nor model/" in error(str(tmp_path / "."))


def test_an_adapter_of_another_shape_or_kind(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = random_adapter(tmp_path / "adapter", base, known_base=False)
    wide = tiny_llama(tmp_path / "wide", hidden_size=128)
    with pytest.raises(ModelError, match="does not fit its base"):
        merge(str(adapter), str(tmp_path / "m"), base=str(wide))
    short = tiny_llama(tmp_path / "short", num_hidden_layers=1)
    with pytest.raises(ModelError, match="does not have"):
        merge(str(adapter), str(tmp_path / "m"), base=str(short))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for kind, expected in (("XLORA", "of type XLORA"), ("IA3", "lora_A.weight, which cannot be merged")):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": kind}))
        with pytest.raises(ModelError, match=expected):
            merge(str(adapter), str(tmp_path / "m"))


@pytest.mark.parametrize("family", ["mamba", "llama"])
def test_the_weights_that_a_merge_takes_as_quantized_are_those_of_the_loaded_base(
    tmp_path: Path, family: str
) -> None:
    """Mamba's kernel reads some projections directly, so they stay plain; a merge took them as quantized."""
    folder = FAMILIES[family].make(tmp_path / "base")
    network = load_network(
        Model(path=str(folder), quantize=NF4), dtype=torch.float32, device=torch.device("cpu")
    )
    loaded = {f"{name}.weight" for name, one in network.named_modules() if type(one).__name__ == "Linear4bit"}
    structure = Structure.of(folder, trust_remote_code=False)
    assert structure.quantized(NF4, torch.float32) == loaded
    assert loaded


def test_names_of_files_that_transformers_renames() -> None:
    """The files of Gemma 3 name the text model otherwise than its modules are named."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "head_dim": 16,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config={**text, **heads}, vision_config={**vision, "image_size": 28})
    with torch.device("meta"):
        structure = Structure(AutoModelForCausalLM.from_config(config))
    layer = "layers.0.mlp.down_proj.weight"
    stored = [f"language_model.model.{layer}", "language_model.model.norm.weight"]
    assert structure.stored_name(f"model.language_model.{layer}", stored) == stored[0]
    assert structure.stored_name("model.language_model.layers.1.mlp.down_proj.weight", stored) is None
    assert structure.stored_name(stored[0], stored) == stored[0]
