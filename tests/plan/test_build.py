"""The numbers of a plan."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import DataError, ModelError, ScaleError
from tailor.plan import DataFacts, Hardware, ModelFacts, Plan, build, rope, schedule
from tailor.plan.build import choose_precision
from tailor.plan.facts import carries_over
from tailor.plan.memory import trained_parameters
from tailor.spec.adapter import Adapter
from tailor.spec.load import load_recipe
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.recipe import Recipe
from tailor.spec.rope import YarnRope
from tests.helpers.public_configs import BASES

ROOT = Path(__file__).parents[2]

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
GPU = Hardware("cuda", 80 * 2**30, bf16=True)
CPU = Hardware("cpu", 16 * 2**30, bf16=True)
FULL = {"adapter": None, "quantize": None}
DATA = DataFacts("tokens", "f", "t", 1000, 100, 500_000, 300_000, 2048, 2048, 32, 32, 30, 90)


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"path": "org/model", "adapter": {}, "quantize": {}},
        "data": {"train": [{"path": "x"}]},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4},
        "save": {"to": "runs/x"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.model_validate(values)


def plan(hardware: Hardware = GPU, data: DataFacts = DATA, **sections: Any) -> Plan:
    return build(recipe(**sections), data, LLAMA_8B, hardware, run_url="runs/x")


def trained(facts: ModelFacts, **adapter: Any) -> int:
    return trained_parameters(facts, Model(path="x", adapter=Adapter(**adapter)))


def test_parameters_of_llama_8b() -> None:
    facts = ModelFacts.from_config(LLAMA_8B)
    assert facts.linear_parameters + facts.embedding_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert trained(facts, rank=16) == 41_943_040  # what PEFT counts for all-linear at rank 16
    some = {"q_proj": 32, r"layers\.0\.mlp\.down_proj": 8}
    more = 32 * 16 * (4096 + 4096) - 8 * (14336 + 4096)
    assert trained(facts, rank=16, rank_pattern=some) == 41_943_040 + more


def test_accumulation_follows_from_the_global_batch() -> None:
    one = plan(train={"micro_batch_size": 2})
    eight = plan(train={"micro_batch_size": 2}, scale={"workers": 8})
    assert (one.accumulation, eight.accumulation) == (16, 2)
    assert (one.steps, one.warmup_steps) == (eight.steps, eight.warmup_steps) == (90, 0)


def test_default_micro_batch_fits_the_memory() -> None:
    large, small = plan(), plan(Hardware("cuda", 24 * 2**30, bf16=True))
    assert large.micro_batch_size > small.micro_batch_size >= 1
    assert small.memory.peak < 24 * 2**30
    declared = plan(Hardware("cuda", 24 * 2**30, bf16=True), train={"micro_batch_size": 32})
    assert declared.memory.peak > 24 * 2**30, "the control: an explicit micro-batch size is kept"


def test_memory_by_what_is_trained() -> None:
    small_batch = {"micro_batch_size": 1}
    qlora = plan(train=small_batch).memory
    lora = plan(train=small_batch, model={"quantize": None}).memory
    full = plan(train=small_batch, model={"quantize": None, "adapter": None}).memory
    assert 5e9 < qlora.weights < 8e9 < 15e9 < lora.weights < 17e9 < 30e9 < full.weights
    assert full.optimizer > 100 * qlora.optimizer
    again = plan(train={**small_batch, "activation_checkpointing": True}).memory
    assert again.activations < qlora.activations / 5


@pytest.mark.parametrize(
    ("asked", "device", "bf16", "found"),
    [
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_precision(asked: str, device: str, bf16: bool, found: str) -> None:
    assert choose_precision(asked, Hardware(device, 2**30, bf16)) == found


@pytest.mark.parametrize(
    ("optim", "steps"),
    [
        ({"schedule": "wsd"}, 9),
        ({"schedule": "wsd", "decay_ratio": 0.07}, 7),  # 6.3, rounded up
        ({"schedule": "wsd", "decay_ratio": 1.0}, 90),
        ({"schedule": "wsd", "decay_steps": 70, "warmup_steps": 20}, 70),
        ({}, 0),
    ],
)
def test_decay(optim: dict[str, Any], steps: int) -> None:
    assert plan(optim={"learning_rate": 1e-4, **optim}).decay_steps == steps


def test_a_schedule_that_does_not_fit_is_an_error() -> None:
    wsd = {"learning_rate": 1e-4, "schedule": "wsd", "warmup_steps": 20}
    with pytest.raises(
        DataError, match=r"optim\.decay_steps asks for 71 steps of decay, .* only 70 steps after"
    ):
        plan(optim={**wsd, "decay_steps": 71})
    with pytest.raises(DataError, match=r"optim\.decay_ratio asks for 90 steps of decay"):
        plan(optim={**wsd, "decay_ratio": 1})
    restarts = {"learning_rate": 1e-4, "schedule": "cosine_with_restarts"}
    assert plan(optim={**restarts, "cycles": 90}).steps == 90
    with pytest.raises(DataError, match=r"optim\.cycles is 91, but the run has only 90 steps"):
        plan(optim={**restarts, "cycles": 91})


@pytest.mark.parametrize(("optim", "steps"), [({"warmup_ratio": 0.1}, 9), ({"warmup_steps": 7}, 7), ({}, 0)])
def test_warmup(optim: dict[str, float], steps: int) -> None:
    assert plan(optim={"learning_rate": 1e-4, **optim}).warmup_steps == steps


def test_a_warmup_longer_than_the_run_is_rejected() -> None:
    assert plan(optim={"learning_rate": 1e-4, "warmup_steps": 89}).warmup_steps == 89
    with pytest.raises(DataError, match=r"optim\.warmup_steps is 90, but the whole run has only 90 steps"):
        plan(optim={"learning_rate": 1e-4, "warmup_steps": 90})


def test_a_batch_that_is_larger_than_the_data_is_reported() -> None:
    assert plan().notes() == []
    few = dataclasses.replace(
        DATA, smaller_than_batch={"train.batch_size": 20, "method.generative_batch_size": 3}
    )
    assert plan(data=few).notes() == [
        "train.batch_size is larger than the data: an epoch has 20 rows, and is one step",
        "method.generative_batch_size is larger than the data: there are 3 sequences, so each step repeats some",
    ]


def test_idle_workers_are_reported() -> None:
    """The batch has 32 rows."""
    declared = {"train": {"micro_batch_size": 16}}
    assert [plan(**declared, scale={"workers": workers}).idle_workers for workers in (1, 2, 4)] == [0, 0, 2]
    assert plan(scale={"workers": 4}).idle_workers == 0, "the default micro-batch size leaves no worker idle"
    (note,) = plan(**declared, scale={"workers": 4}).notes()
    assert note == (
        "2 of 4 workers would be idle: a batch has fewer than 4 micro-batches of 16; lower train.micro_batch_size"
    )
    assert plan(**declared).notes() == []


def test_the_reference_of_a_preference_method_and_its_memory() -> None:
    assert plan().reference is None
    assert plan(method={"name": "dpo", "loss": "orpo"}).reference is None
    assert plan(method={"name": "dpo"}).reference == "adapter_off"
    assert plan(method={"name": "kto"}).reference == "adapter_off"
    copied = plan(method={"name": "dpo"}, model=FULL)
    assert copied.reference == "copy"
    assert copied.memory.reference == 4 * copied.trained_parameters
    once = plan(method={"name": "dpo", "reference": "precomputed"}, model=FULL)
    assert once.reference == "precomputed"
    assert copied.memory.peak - once.memory.peak == pytest.approx(copied.memory.reference, rel=1e-6)


def test_kto_needs_two_examples_of_each_split() -> None:
    for split in ("examples", "evaluation_examples"):
        with pytest.raises(DataError, match="a split has only one example"):
            plan(data=dataclasses.replace(DATA, **{split: 1}), method={"name": "kto"})
        assert plan(data=dataclasses.replace(DATA, **{split: 1}))


def test_memory_counts_rows_of_long_pairs() -> None:
    longer = dataclasses.replace(DATA, longest_row=4000)
    assert plan(data=longer).row_length == 4000
    one = {"train": {"epochs": 3, "batch_size": 32, "micro_batch_size": 1}}
    assert plan(data=longer, **one).memory.activations > 1.9 * plan(**one).memory.activations


def test_recipes_that_cannot_run_are_rejected() -> None:
    with pytest.raises(ScaleError, match="there is no GPU"):
        plan(CPU, scale={"gpu": True})
    with pytest.raises(ModelError, match=r"9000 tokens.*8192 positions"):
        plan(data=dataclasses.replace(DATA, longest=9000))
    with pytest.raises(DataError, match="no evaluation example"):
        plan(data=dataclasses.replace(DATA, evaluation_examples=0), evaluate={"every": 5})


def test_a_plan_is_plain_values() -> None:
    values = json.loads(json.dumps(plan().as_dict()))
    assert values["model"]["adapter"]["rank"] == 16
    assert values["memory"]["weights"] > 0


@pytest.mark.parametrize("name", BASES)
def test_sizes_are_read_from_every_familys_config(name: str) -> None:
    """transformers counts the published number of weights, and the plan counts it to within 5 %."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    published, values = BASES[name]
    values = dict(values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    assert sum(p.numel() for p in model.parameters()) == published
    facts = ModelFacts.from_config(BASES[name][1])
    assert facts.linear_parameters + facts.embedding_parameters == pytest.approx(published, rel=0.05)


def test_settings_that_a_family_does_not_support_are_rejected_before_loading() -> None:
    mamba, bloom = (BASES[name][1] for name in ("state-spaces/mamba-1.4b-hf", "bigscience/bloom-1b1"))
    build(recipe(), DATA, mamba, GPU, run_url="runs/x")
    with pytest.raises(ModelError, match=r"train\.compile: .* \(mamba\) has recurrent layers"):
        build(recipe(train={"compile": True}), DATA, mamba, GPU, run_url="runs/x")
    for config, why in (({**mamba, "model_type": "rwkv"}, "recurrent layers"), (bloom, "ALiBi")):
        with pytest.raises(ModelError, match=f"cannot isolate packed documents.*{why}"):
            build(recipe(), DATA, config, GPU, run_url="runs/x")
        for section in ({"data": {"pack": False}}, {"method": {"name": "pretrain"}}):
            build(recipe(**section), DATA, config, GPU, run_url="runs/x")
    mixture = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8}
    quantized, plain = (
        build(recipe(**sections), DATA, mixture, GPU, run_url="runs/x").memory.weights
        for sections in ({}, {"model": {"quantize": None}})
    )
    assert quantized < plain / 3, "the experts too"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mpt", "d_model": 64}, "ALiBi"),
        ({"model_type": "mpt", "d_model": 64, "attn_config": {"alibi": False}}, ""),
        ({"model_type": "falcon", "alibi": True}, "ALiBi"),
        ({"model_type": "falcon", "alibi": False}, ""),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "recurrent layers"),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, "recurrent layers"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"]}, ""),
        ({"model_type": "qwen3"}, ""),
    ],
)
def test_models_that_cannot_isolate_documents_are_known_by_their_config(config: Any, why: str) -> None:
    assert (carries_over(config) is not None) == bool(why)
    assert why in (carries_over(config) or "")


def test_flash_attention_needs_a_gpu() -> None:
    flash = {"model": {"attention": "flash_attention_2"}}
    with pytest.raises(ScaleError, match=r"model\.attention is flash_attention_2, but there is no GPU"):
        plan(CPU, **flash)
    plan(**flash)


def test_only_the_input_projection_of_a_mamba_is_quantized_and_adapted() -> None:
    facts = ModelFacts.from_config(BASES["state-spaces/mamba-2.8b-hf"][1])
    assert facts.quantized_parameters == pytest.approx(2 / 3 * facts.linear_parameters)
    assert trained(facts, rank=64) == 64 * 64 * (2560 + 2 * 5120)


GRITLM = {"method": {"name": "gritlm", "embedding_batch_size": 1024, "group_size": 3}}
TEXTS = dataclasses.replace(DATA, rows_per_batch=32, texts_per_batch=4096, longest_text=512, longest_row=512)


def test_chunks_of_texts_fit_the_memory() -> None:
    large, small = plan(data=TEXTS, **GRITLM), plan(Hardware("cuda", 16 * 2**30, bf16=True), TEXTS, **GRITLM)
    assert large.chunk_size is None
    assert 512 <= small.chunk_tokens < large.chunk_tokens <= 32768
    assert small.memory.peak < 0.8 * 16 * 2**30
    four = plan(data=TEXTS, **GRITLM, scale={"workers": 4})
    assert four.chunk_tokens == large.chunk_tokens, "the chunk size does not depend on the number of workers"
    doubled = dataclasses.replace(TEXTS, texts_per_batch=8192)
    grown = plan(data=doubled, **GRITLM).memory
    assert grown == dataclasses.replace(large.memory, embeddings=grown.embeddings), "nothing else grows"
    assert grown.embeddings > large.memory.embeddings
    declared = plan(data=TEXTS, method={**GRITLM["method"], "chunk_size": 16})
    assert (declared.chunk_size, declared.chunk_tokens) == (16, 0)
    assert plan().chunk_tokens == 0
    kept = plan(data=TEXTS, method={**GRITLM["method"], "chunk_size": 4, "kept_chunks": 4})
    assert kept.memory == plan(data=TEXTS, method={**GRITLM["method"], "chunk_size": 16}).memory
    fitted = plan(data=TEXTS, method={**GRITLM["method"], "kept_chunks": 4})
    assert 4 * fitted.chunk_tokens <= 2 * large.chunk_tokens


def test_the_forecast_charges_no_rows_and_texts_that_the_data_lacks() -> None:
    """A micro-batch of 8 rows of 2,048 tokens, of which there are 3; chunks of 32,768 tokens, of texts with 2,048."""
    few = dataclasses.replace(DATA, max_rows=3)
    declared = {"train": {"micro_batch_size": 8}}
    three = plan(train={"micro_batch_size": 3})
    assert plan(data=few, **declared).memory == three.memory
    assert plan(data=few, **declared).micro_batch_size == 8, "the recipe's"
    assert plan(**declared).memory.peak > 1.2 * three.memory.peak, "control"
    some = dataclasses.replace(TEXTS, texts_per_batch=4, longest_row=64, longest=64)
    made = plan(data=some, **GRITLM)
    assert made.chunk_tokens == 32768
    eight_thousand = plan(data=TEXTS, **GRITLM)
    assert eight_thousand.chunk_tokens == 8192
    assert made.memory.activations == pytest.approx(eight_thousand.memory.activations / 4, rel=0.01)


def test_a_resumed_run_keeps_its_chunk_size() -> None:
    made = build(recipe(**GRITLM), TEXTS, LLAMA_8B, CPU, run_url="runs/x", chunk_tokens=777)
    assert made.chunk_tokens == 777


def test_matryoshka_sizes_are_below_the_full_size() -> None:
    with pytest.raises(ModelError, match="4096 is not smaller than the full embedding size, 4096"):
        plan(data=TEXTS, method={**GRITLM["method"], "matryoshka": [4096]})


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_planned(path: Path) -> None:
    """Each names the memory that the plan forecasts on a large GPU, in its opening comment."""
    recipe = load_recipe(path, check_files=False)
    base = BASES.get(recipe.model.path)
    own = ROOT / recipe.model.path / "config.json"
    config = base[1] if base else json.loads(own.read_text()) if own.exists() else LLAMA_8B
    length = recipe.data.max_length if base else 64
    row = recipe.data.max_length if recipe.data.pack or recipe.method.joins else length
    rows = max(32, recipe.train.batch_size or 0)
    data = dataclasses.replace(DATA, longest=length, longest_row=row, rows_per_batch=rows, max_rows=rows)
    if isinstance(recipe.method, Gritlm):
        method = recipe.method
        texts = method.embedding_batch_size * (1 + method.group_size)
        rows = method.generative_batch_size
        data = dataclasses.replace(data, rows_per_batch=rows, texts_per_batch=texts, longest_text=length)
    made = build(recipe, data, config, GPU, run_url=recipe.save.to)
    assert made.steps == 90
    assert made.micro_batch_size * made.accumulation * made.workers >= data.rows_per_batch
    named = re.search(r"forecasts ([\d.]+) GiB", path.read_text().split("\nmodel:")[0])
    assert (named is None) == (base is None), (
        "the small model of the quickstart states no memory in its recipe"
    )
    if named:
        assert float(named[1]) == pytest.approx(made.memory.peak / 2**30, abs=0.06)


def test_model_rope_extends_the_maximum_length(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "llama3-8b-80k-qlora.yaml", check_files=False)
    config = BASES[recipe.model.path][1]
    data = dataclasses.replace(DATA, longest=81920, longest_row=81920)
    assert build(recipe, data, config, GPU, run_url="r").batches.max_length == 81920
    short = recipe.model_copy(update={"model": recipe.model.model_copy(update={"rope": None})})
    with pytest.raises(ModelError, match=r"has 81920 tokens, but .* supports 8192 positions") as caught:
        build(short, data, config, GPU, run_url="r")
    assert "model.rope" in str(caught.value.hint)
    yarn = YarnRope(name="yarn", factor=16, original_length=4096)
    wrong = recipe.model_copy(update={"model": recipe.model.model_copy(update={"rope": yarn})})
    with pytest.raises(
        ModelError, match=r"original_length is 4096, but the original maximum length of .* is 8192 tokens"
    ):
        build(wrong, data, config, GPU, run_url="r")


def test_length_dependent_rope_is_rejected_for_preference_pairs() -> None:
    """Frequencies that follow the longest document of a pass would make each answer depend on the other."""
    phi = {**LLAMA_8B, "model_type": "phi3", "max_position_embeddings": 131072}
    phi |= {"original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}}
    recipe = load_recipe(ROOT / "recipes" / "llama3-8b-80k-qlora.yaml", check_files=False)
    apart = recipe.data.model_copy(update={"pack": False})
    model, train = (
        recipe.model.model_copy(update={"rope": None}),
        recipe.train.model_copy(update={"micro_batch_size": 1}),
    )
    recipe = recipe.model_copy(update={"model": model, "data": apart, "train": train})
    data = dataclasses.replace(DATA, longest=8000, longest_row=8000)
    assert build(recipe, data, phi, GPU, run_url="r"), "the control: one example a pass"
    pairs = recipe.model_copy(update={"method": Dpo(name="dpo")})
    with pytest.raises(
        ModelError, match=r"above 4096 tokens, its frequencies .* longest example has 8000"
    ) as caught:
        build(pairs, data, phi, GPU, run_url="r")
    assert "another model.path" in str(caught.value.hint)


def test_length_dependent_rope_is_rejected_with_packing() -> None:
    phi = {**LLAMA_8B, "model_type": "phi3", "max_position_embeddings": 131072}
    phi |= {"original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}}
    recipe = load_recipe(ROOT / "recipes" / "llama3-8b-80k-qlora.yaml", check_files=False)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"rope": None})})
    data = dataclasses.replace(DATA, longest=8000, longest_row=8000)
    assert build(recipe, data, phi, GPU, run_url="r"), "one row a pass"
    packed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"pack": True})})
    with pytest.raises(
        ModelError, match=r"above 4096 tokens, its frequencies .* longest example has 8000"
    ) as caught:
        build(packed, data, phi, GPU, run_url="r")
    assert caught.value.hint == "set data.pack: false, or data.max_length: 4096 or less"
    assert build(packed, dataclasses.replace(data, longest=4096), phi, GPU, run_url="r"), (
        "short ones never differ"
    )


@pytest.mark.parametrize(
    ("config", "made_for", "good_for"),
    [
        ({"max_position_embeddings": 4096}, 4096, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096, 8192),
        (
            {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "linear", "factor": 2}},
            4096,
            8192,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            8192,
            131072,
        ),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}, 4096, 131072),
        ({"n_positions": 1024}, 1024, 1024),
        ({}, None, None),
    ],
)
def test_lengths_are_read_from_any_config(
    config: dict[str, Any], made_for: int | None, good_for: int | None
) -> None:
    assert rope.original_length(config) == made_for
    assert rope.positions(config) == ModelFacts.from_config(config).positions == good_for


def test_planning_imports_nothing_heavy() -> None:
    code = "import sys, tailor.plan; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"),
    [(0.03, 10, 1), (0.1, 11, 2), (0.07, 100, 7), (0.5, 1, 1), (0.99, 2, 1), (0.0, 9, 0)],
)
def test_a_warmup_ratio_is_rounded_up(ratio: float, steps: int, warmup: int) -> None:
    assert schedule.warmup(Optim(learning_rate=1e-4, warmup_ratio=ratio), steps) == warmup


@pytest.mark.parametrize(("steps", "parts"), [(11, (6, 5)), (1, (1, 0)), (2, (1, 1)), (10, (5, 5))])
def test_two_halves_that_are_rounded_up_fit(steps: int, parts: tuple[int, int]) -> None:
    optim = Optim(learning_rate=1e-4, schedule="wsd", warmup_ratio=0.5, decay_ratio=0.5)
    warmup = schedule.warmup(optim, steps)
    assert (warmup, schedule.decay(optim, steps, warmup)) == parts


def test_a_tied_head_has_no_learning_rate_of_its_own() -> None:
    optim = {"learning_rate": 1e-4, "learning_rate_ratios": {"head": 2}}
    full = recipe(model=FULL, optim=optim)
    build(full, DATA, LLAMA_8B, GPU, run_url="runs/x")
    with pytest.raises(ModelError, match=r"optim\.learning_rate_ratios\.head: .* tied to the embeddings"):
        build(full, DATA, {**LLAMA_8B, "tie_word_embeddings": True}, GPU, run_url="runs/x")


def test_the_state_of_muon_and_schedule_free() -> None:
    """Bytes: one moment of a matrix, two of the embedding and the head, as AdamW; z and one moment of all weights."""

    def optimizer(name: str) -> int:
        return plan(model=FULL, optim={"learning_rate": 1e-4, "optimizer": name}).memory.optimizer

    tables = 2 * 128256 * 4096
    adamw = optimizer("adamw")
    assert optimizer("schedule_free") == adamw
    assert optimizer("muon") == pytest.approx(4 * adamw / 8 + 4 * tables, rel=1e-6)


def test_early_stopping_needs_an_evaluation_example() -> None:
    stopping = {"train": {"early_stopping": {}}, "evaluate": {"every": 5}}
    assert plan(**stopping).early_stopping is not None
    with pytest.raises(DataError, match="there is no evaluation example after preparation"):
        plan(data=dataclasses.replace(DATA, evaluation_examples=0), **stopping)
