"""Plans with sequence parallelism, and with activations offloaded to host memory."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.cli.plan import lines
from tailor.errors import ModelError, ScaleError
from tailor.plan import Hardware, Plan, build
from tests.plan.test_build import CPU, DATA, GPU, LLAMA_8B, plan, recipe

SMALL = Hardware("cuda", 24 * 2**30, bf16=True)


def together(parts: int, workers: int = 8, config: dict[str, Any] = LLAMA_8B, **sections: Any) -> Plan:
    made = recipe(**sections, scale={"workers": workers, "sequence_parallel": parts})
    return build(made, DATA, config, GPU, run_url="runs/x")


def test_accumulation_counts_groups_like_workers() -> None:
    two = {"train": {"micro_batch_size": 2}}
    assert together(4, **two).accumulation == plan(**two, scale={"workers": 2}).accumulation == 8
    assert together(4).sequence_parallel == 4
    assert (plan().sequence_parallel, plan().activation_checkpointing) == (1, 0)


def test_a_group_fits_more_rows_than_a_worker() -> None:
    alone = plan(SMALL, scale={"workers": 1}).micro_batch_size
    scale = {"workers": 4, "sequence_parallel": 4}
    assert plan(SMALL, scale=scale).micro_batch_size > alone


@pytest.mark.parametrize(
    ("parts", "changed", "message"),
    [
        (3, {}, r"sequence_parallel is 3, but the 32 attention heads of org/model are not divisible by it"),
        (2, {"model_type": "mamba"}, r"\(mamba\) cannot split its sequences: its recurrent layers carry"),
        (
            2,
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"its RoPE frequencies \(dynamic\) depend on",
        ),
        (
            2,
            {"rope_parameters": {"full": {"rope_type": "longrope"}}},
            r"its RoPE frequencies \(longrope\) depend on",
        ),
    ],
)
def test_models_that_cannot_split_sequences_are_rejected(
    parts: int, changed: dict[str, Any], message: str
) -> None:
    config = {**LLAMA_8B, **changed}
    model = {"model": {"quantize": None}}
    with pytest.raises(ModelError, match=message):
        together(parts, workers=2 * parts, config=config, **model)
    unlike = {"rope_scaling": {"type": "yarn"}, "output_router_logits": True, "router_aux_loss_coef": 0.01}
    assert together(2, config={**LLAMA_8B, **unlike}, **model), "the control"


def test_the_hint_lists_the_divisors_of_the_heads() -> None:
    with pytest.raises(ModelError) as error:
        together(5, workers=5, config={**LLAMA_8B, "num_attention_heads": 12})
    assert error.value.hint == "set it to one of 2, 3, 4, 6, 12"


def test_activation_offloading_needs_a_gpu() -> None:
    train = {"train": {"activation_checkpointing": True, "activation_offloading": True}}
    assert plan(**train).memory.host > 0
    with pytest.raises(
        ScaleError, match="activation_offloading is true, but there is no GPU whose activations could move"
    ):
        plan(CPU, **train)


def test_kernels_need_a_gpu_and_a_dense_model() -> None:
    made = recipe(model={"kernels": "liger", "quantize": None})
    llama = {**LLAMA_8B, "model_type": "llama"}
    assert build(made, DATA, llama, GPU, run_url="runs/x").model.kernels == "liger"
    with pytest.raises(
        ScaleError, match=r"model\.kernels is liger, but there is no GPU; set model\.kernels: none"
    ):
        build(made, DATA, llama, CPU, run_url="runs/x")
    mixture = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8}
    with pytest.raises(ModelError, match=r"liger is not for org/model \(mixtral\); it is for llama, mistral"):
        build(made, DATA, mixture, GPU, run_url="runs/x")


def test_the_plan_shows_workers_per_sequence_and_host_memory() -> None:
    train = {"micro_batch_size": 1, "activation_checkpointing": True, "activation_offloading": True}
    shown = dict(lines(together(4, train=train), GPU))
    assert shown["per worker"].startswith("8 workers, 4 per sequence: micro-batches of 1, up to 16")
    assert shown["memory"].endswith("; plus 0.12 GiB of host memory")
    assert "host memory" not in dict(lines(plan(), GPU))["memory"], "the control"
