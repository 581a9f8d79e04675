"""Averages of adapters with every kind of PEFT settings have the logits of plain PEFT, or are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailor.artifacts import average_adapters
from tailor.artifacts.average import average
from tailor.artifacts.merge import merge
from tailor.cli.main import main
from tailor.errors import ModelError
from tailor.models.adapter_files import change_config, write_config
from tailor.spec.model import Quantize
from tests.helpers.adapters import random_adapter
from tests.helpers.family import Family
from tests.helpers.models import CHATML, byte_tokenizer, tiny_llama
from tests.helpers.plain_peft import averaged_logits, difference, logits_of_adapter

GPT2 = Family("GPT-2", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2})
FIRST_LAYER = {"layers_to_transform": [0], "layers_pattern": "layers"}
CASES: dict[str, list[dict[str, Any]]] = {
    "exclude_modules": [{"exclude_modules": ["v_proj", "down_proj"]}, {}],
    "layers": [{"target_modules": ["q_proj"], **FIRST_LAYER}, {"target_modules": r".*\.1\..*_proj"}, {}],
    "scales": [
        {"r": 2, "use_rslora": True, "alpha_pattern": {"q_proj": 32}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "lora_dropout": 0.5, "init_lora_weights": False},
        {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "gaussian"},
    ],
    "modules in full": [
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens"], "exclude_modules": ["q_proj"]},
    ],
    "a module with parts in full": [{"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}] * 2,
    "4 bits": [{"quantize": Quantize(type="nf4"), "dtype": "bfloat16"}] * 2,
    "conv1d": [{"target_modules": ["c_attn"]}, {"target_modules": ["c_fc", "c_proj"], "use_rslora": True}],
}


@pytest.mark.parametrize("case", CASES)
def test_the_average_has_the_logits_of_plain_peft(case: str, tmp_path: Path) -> None:
    base = (GPT2.make if case == "conv1d" else tiny_llama)(tmp_path / "base")
    folders = [
        random_adapter(tmp_path / str(number), base, seed=number, **settings)
        for number, settings in enumerate(CASES[case])
    ]
    weights = [0.5, 0.2, 0.3][: len(folders)]
    said: list[str] = []
    url = average([str(one) for one in folders], str(tmp_path / "mean"), weights=weights, say=said.append)
    expected = averaged_logits(folders, base, weights)
    assert difference(logits_of_adapter(url, base), expected) < 1e-5
    assert difference(logits_of_adapter(folders[0], base), expected) > 1e-2, "control"
    record = json.loads((tmp_path / "mean" / "average.json").read_text())["verification"]
    assert record["check"] == "logits"
    assert record["kl"] < 1e-9
    assert any(line.startswith("verified on 4 built-in texts") for line in said)
    written = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    assert not {"exclude_modules", "layers_to_transform", "layers_pattern", "use_rslora"} & written.keys()


def test_names_that_end_alike_keep_their_ranks(tmp_path: Path) -> None:
    """PEFT looks for the end of a name: `q_proj` of one module is the end of `other.q_proj`."""
    factors = {"q_proj": 2, "other.q_proj": 4}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tensors = {}
        for module, rank in factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 8)
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(8, rank)
        save_file(tensors, tmp_path / folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": "none"}
        write_config(tmp_path / folder, {**config, "rank_pattern": {"^q_proj": 2}})
    average([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "mean"))
    from peft.utils.other import get_pattern_key

    written = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    for module, rank in factors.items():
        key = get_pattern_key(written["rank_pattern"], module)
        assert written["rank_pattern"].get(key, written["r"]) == 2 * rank


REFUSED: dict[str, tuple[Any, bool]] = {
    "alora_invocation_tokens": ([5, 6], True),
    "layer_replication": ([[0, 2], [1, 2]], True),
    "use_qalora": (True, True),
    "use_bdlora": ({"nblocks": 2}, True),
    "kasa_config": ({"beta": 1e-4}, True),
    "arrow_config": ({"top_k": 2}, True),
    "target_parameters": (["mlp.experts.gate_up_proj"], True),
    "bias": ("lora_only", False),
    "lora_bias": (True, False),
    "ensure_weight_tying": (True, False),
    "a_setting_of_tomorrow": (1, False),
}
"""Key -> a value, and whether such an adapter cannot be merged either."""


def test_settings_that_an_average_cannot_keep(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    good, bad = (random_adapter(tmp_path / name, base) for name in ("good", "bad"))
    for key, (value, always) in REFUSED.items():
        shutil.copy(good / "adapter_config.json", bad)
        change_config(bad, **{key: value})
        with pytest.raises(ModelError, match=rf"the adapter at .*/bad has {key}") as caught:
            average([str(good), str(bad)], str(tmp_path / "mean"))
        assert "tolerance" not in str(caught.value)
        if always:
            with pytest.raises(ModelError, match=rf"the adapter at .*/bad has {key}, so it cannot be merged"):
                merge(str(bad), str(tmp_path / "merged"))
    assert not (tmp_path / "mean").exists()
    shutil.copy(good / "adapter_config.json", bad)
    average([str(good), str(bad)], str(tmp_path / "mean"))  # control: nothing but the key was refused


def _copies_the_first(folder: Path, adapters: Any, ranks: dict[str, int]) -> None:
    written = {"r": max(ranks.values()), "lora_alpha": max(ranks.values()), "target_modules": sorted(ranks)}
    write_config(folder, {**adapters[0].config, **written})


def _loses_a_part(adapters: Any, shares: Any, module: str) -> Any:
    down, up = _CONCATENATED(adapters, shares, module)
    return down, 0.7 * up


_CONCATENATED = average_adapters.concatenated


@pytest.mark.parametrize(
    ("name", "wrong", "found_by"),
    [("_write_config", _copies_the_first, ["logits"]), ("concatenated", _loses_a_part, ["logits", "layers"])],
    ids=["config", "factors"],
)
def test_an_average_that_is_wrong_is_not_published(
    name: str,
    wrong: Callable[..., Any],
    found_by: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny_llama(tmp_path / "base")
    folders = [
        str(random_adapter(tmp_path / str(number), base, seed=number, **settings))
        for number, settings in enumerate(CASES["exclude_modules"])
    ]
    monkeypatch.setattr(average_adapters, name, wrong)
    words = ["average", *folders, "--to", str(tmp_path / "mean")]
    for check in found_by:
        assert main([*words, "--verify", check]) == 2
        error = capsys.readouterr().err
        assert "tailor: the average fails verification: " in error
        assert "against the weighted sum of" in error or "from those of the weighted sum of" in error
        assert not (tmp_path / "mean").exists()
    assert main([*words, "--tolerance", "10"]) == 0
    assert json.loads((tmp_path / "mean" / "average.json").read_text())["verification"]["kl"] > 1e-3


def test_without_the_base_layers_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_llama(tmp_path / "base")
    folders = [str(random_adapter(tmp_path / name, base, seed=ord(name))) for name in "ab"]
    shutil.move(base, tmp_path / "moved")
    words = ["average", *folders, "--to", str(tmp_path / "mean")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"compared only layers, because the base {base} is not on this machine\n" in out
    assert "verified on 14 of 14 layers: largest relative error of an output" in out
    url = tmp_path / "mean"
    expected = averaged_logits(folders, tmp_path / "moved", [1, 1])
    assert difference(logits_of_adapter(url, tmp_path / "moved"), expected) < 1e-5
    assert main([*words, "--verify", "logits"]) == 2
    assert f"needs its base model {base}" in capsys.readouterr().err
    assert (
        main(["average", str(tmp_path / "moved"), str(tmp_path / "moved"), *words[3:], "--verify", "layers"])
        == 2
    )
    assert "--verify has an effect only on adapters" in capsys.readouterr().err


def _template(folder: Path) -> None:
    byte_tokenizer(folder, chat_template=CHATML.replace("<|im_end|>\n", "<|im_end|>"))


def _bos(folder: Path) -> None:
    byte_tokenizer(folder, bos=True)


def _edited(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name, keys in (("tokenizer_config.json", values), ("tokenizer.json", {})):
            path = folder / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return change


def _truncated(folder: Path) -> None:
    path = folder / "tokenizer.json"
    settings = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation": settings}))


OTHERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "template": (_template, "different chat templates"),
    "no template": (lambda folder: (byte_tokenizer(folder, chat_template=None), None)[1], None),
    "bos": (_bos, "different tokenizers"),
    "eos": (_edited(eos_token="<|im_end|>"), "different BOS or EOS tokens: "),
    "added": (
        _edited(added_tokens_decoder={"261": {"content": "<new>", "special": False}}),
        "different added tokens: '<new>' is token 261 of only one of them",
    ),
    "padding": (_edited(pad_token="</s>", model_max_length=99), None),
    "truncation": (_truncated, None),
}
"""What is changed -> the change, and the difference in the message if it is refused."""


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_tokenizers_of_averaged_models_agree(kind: str, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    first = random_adapter(tmp_path / "first", base) if kind == "adapter" else base
    for name, (change, expected) in OTHERS.items():
        other = Path(shutil.copytree(first, tmp_path / name))
        change(other)
        parts, to = [str(first), str(other)], str(tmp_path / f"{name}-mean")
        if expected is None:
            average(parts, to, check="layers" if kind == "adapter" else None)
            continue
        with pytest.raises(ModelError) as caught:
            average(parts, to)
        assert caught.value.message.startswith(f"{first} and {other} have {expected}")
    said: list[str] = []
    parts = [str(tmp_path / "no template"), str(first)]
    average(parts, str(tmp_path / "reversed"), check="layers" if kind == "adapter" else None, say=said.append)
    assert any(f"name {first} first to get its template" in line for line in said)
    assert load_file(
        tmp_path / "truncation-mean" / f"{'adapter_' if kind == 'adapter' else ''}model.safetensors"
    )
