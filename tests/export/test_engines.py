"""Which engines serve an artifact: every limit is found, reported before work is done, and answered with a command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tailor.export.engines import (
    ENGINES,
    LIMITS,
    LLAMA_CPP,
    OLLAMA,
    PEFT,
    VLLM,
    Artifact,
    found,
    max_lora_rank,
    verdicts,
)
from tailor.store import Store

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "bias": "none",
    "target_modules": ["q_proj"],
}
PLAIN |= {
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def artifact(**changes: Any) -> Artifact:
    return Artifact({**PLAIN, **changes}, "LlamaForCausalLM", prefix_lm=False)


def test_a_plain_lora_adapter_is_served_by_all_that_read_adapters() -> None:
    assert [engine for engine in ENGINES if not found(artifact(), engine)] == [PEFT, VLLM, OLLAMA]
    model = Artifact(None, "LlamaForCausalLM", prefix_lm=False)
    assert [engine for engine in ENGINES if not found(model, engine)] == list(ENGINES)


@pytest.mark.parametrize(
    ("change", "vllm", "ollama"),
    [
        ({"use_dora": True}, "refuses DoRA", "refuses DoRA"),
        ({"use_rslora": True}, None, "ignores rsLoRA"),
        (
            {"modules_to_save": ["lm_head"]},
            "refuses modules trained in full",
            "refuses modules trained in full",
        ),
        ({"trainable_token_indices": [4]}, "refuses new tokens", "refuses new tokens"),
        ({"bias": "all"}, "refuses trained biases", "refuses trained biases"),
        ({"lora_bias": True}, "refuses trained biases", "refuses trained biases"),
        ({"peft_type": "LOHA"}, "refuses adapters of the type LOHA", "refuses adapters of the type LOHA"),
        ({"target_parameters": ["experts.down_proj"]}, "misreads adapters of routed experts", None),
        ({"target_parameters": ["shared_experts.gate_proj.weight"]}, None, None),
        ({"rank_pattern": {"q_proj": 4}}, "ignores scales of different ranks", None),
        ({"alpha_pattern": {"q_proj": 4}}, "ignores different alphas", "ignores different alphas"),
        ({"r": 600}, "refuses ranks above 512 (600)", None),
        (
            {"r": 512, "rank_pattern": {"q_proj": 513}},
            "refuses ranks above 512 (513)",
            None,
        ),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            "refuses updates of lm_head, with",
            "refuses updates of lm_head",
        ),
        ({"target_modules": ["model.layers.0.mlp.up_proj"]}, None, None),
        ({"lora_alpha": 1.5}, None, "refuses an alpha that is not an integer"),
    ],
)
def test_what_an_adapter_has(change: dict[str, Any], vllm: str | None, ollama: str | None) -> None:
    for engine, expected in ((VLLM, vllm), (OLLAMA, ollama)):
        reasons = found(artifact(**change), engine)
        assert any(reason.startswith(expected) for reason in reasons) if expected else reasons == []


def test_other_limits() -> None:
    for engine in ENGINES:
        assert "reading prompts in both directions" in " ".join(
            found(Artifact(None, "LlamaForCausalLM", prefix_lm=True), engine)
        )
    assert found(Artifact(None, "MambaForCausalLM", prefix_lm=False), OLLAMA) == [
        "refuses safetensors of MambaForCausalLM"
    ]
    mistral = Artifact(PLAIN, "MistralForCausalLM", prefix_lm=False)
    assert found(mistral, OLLAMA) == ["refuses adapters of MistralForCausalLM"]
    assert found(replace(mistral, adapter=None), OLLAMA) == ["refuses safetensors of MistralForCausalLM"]
    assert found(mistral, LLAMA_CPP) == ["refuses adapters as safetensors"]
    assert found(Artifact(None, None, prefix_lm=False), OLLAMA) == [], "the base is not on this machine"
    turned = Artifact(PLAIN, "LlamaForCausalLM", prefix_lm=False, rope=True)
    assert [bool(found(turned, engine)) for engine in (VLLM, OLLAMA, PEFT)] == [True, True, False]
    assert all(limit.source for limit in LIMITS)


def test_the_rank_of_vllm() -> None:
    assert [max_lora_rank(rank) for rank in (1, 2, 16, 17, 96, 300, 512)] == [1, 8, 16, 32, 128, 320, 512]


@pytest.fixture
def dora(run: Path, tmp_path: Path) -> Path:
    """The run, whose adapter says that it is DoRA of rank 48."""
    other = Path(shutil.copytree(run.parent, tmp_path / "folder")) / "run"
    file = other / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True, "r": 48}))
    return other


def test_show_has_the_verdicts(dora: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(dora), "--samples", "0"]) == 0
    out = capsys.readouterr().out
    assert f"vLLM refuses DoRA: tailor merge {dora} && vllm serve {dora}/merged" in out
    assert f"Engines          transformers serves it: tailor generate {dora}" in out
    assert main(["show", str(dora), "--json"]) == 0
    (engine,) = (one for one in json.loads(capsys.readouterr().out)["engines"] if one["engine"] == VLLM)
    assert (engine["serves"], engine["reasons"]) == (False, ["refuses DoRA"])
    commands = {one.engine: one.command for one in verdicts(Store(str(run)))}
    assert commands[VLLM] == (f"vllm serve {run.parent}/base --enable-lora --lora-modules run={run}/adapter")
    assert commands[LLAMA_CPP] == f"tailor export {run} --as gguf --to FOLDER"
    file = dora / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": False}))
    command = {one.engine: one.command for one in verdicts(Store(str(dora)))}[VLLM]
    assert str(command).endswith(" --max-lora-rank 64")


def test_export_and_push_report_them_first(
    dora: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "note: vLLM refuses DoRA: tailor merge"
    assert main(["export", str(dora), "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(note)
    assert main(["push", str(dora), "owner/name", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(note)
    assert main(["export", str(run), "--to", str(tmp_path / "plain")]) == 0
    assert "vLLM" not in capsys.readouterr().out, "the control: a plain adapter"
