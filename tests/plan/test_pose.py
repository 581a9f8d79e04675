"""What the base model's config.json refuses of `train.pose`."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.plan.checks import check_config
from tailor.spec.recipe import Recipe

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 261,
    "max_position_embeddings": 512,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 261, "n_positions": 512}


def check(config: dict[str, Any], pose: dict[str, Any], **model: Any) -> None:
    values = {
        "model": {"path": "base", **model},
        "data": {"train": [{"path": "unused"}], "max_length": 128, "pack": False},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-3},
        "train": {"pose": pose},
        "save": {"to": "run"},
    }
    check_config(Recipe.model_validate(values), config)


ROPE = {"name": "yarn", "factor": 4, "original_length": 512}
NO_LENGTH = {key: value for key, value in LLAMA.items() if key != "max_position_embeddings"}
BLOOM = {**LLAMA, "model_type": "bloom", "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("config", "pose", "message", "hint"),
    [
        (
            LLAMA,
            {"length": 513},
            "length is 513, but base .llama. supports 512 positions",
            "512 or less, or ex",
        ),
        (
            GPT2,
            {"length": 513},
            "length is 513, but base .gpt2. supports 512 positions",
            "length: 512 or less$",
        ),
        (
            {**LLAMA, "max_position_embeddings": 128},
            {},
            "the 128 positions of .* not more",
            "or extend the con",
        ),
        (BLOOM, {"length": 256}, r"base \(bloom\) .*\(ALiBi\)", "remove train.pose"),
        ({**LLAMA, "model_type": "qwen3_next"}, {}, "recurrent layers", "remove train.pose"),
        (NO_LENGTH, {}, "does not say how long", "set train.pose.length"),
    ],
)
def test_models_that_cannot_be_trained_so(
    config: dict[str, Any], pose: dict[str, Any], message: str, hint: str
) -> None:
    import re

    with pytest.raises(ModelError, match=message) as caught:
        check(config, pose)
    assert re.search(hint, caught.value.hint or "")


def test_models_that_can() -> None:
    for config, pose in ((LLAMA, {}), (LLAMA, {"length": 512}), (GPT2, {"length": 512, "chunks": 4})):
        check(config, pose)
    check(LLAMA, {"length": 2048}, rope=ROPE)
    check(NO_LENGTH, {"length": 10_000})
