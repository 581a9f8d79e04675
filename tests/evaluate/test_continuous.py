"""Continuous batching: each answer is the one that its prompt gets alone, whatever runs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tailor.artifacts.load import Loaded, load_run
from tailor.evaluate import continuous, generation
from tailor.evaluate.continuous import Answer, ContinuousBatch
from tests.helpers.adapters import random_adapter
from tests.helpers.families import FAMILIES
from tests.helpers.models import tiny_llama

PROMPTS = [
    list(range(5, 5 + length)) for length in (3, 30, 8, 17, 1, 25, 12, 40, 5, 22, 9, 33, 14, 2, 28, 19, 7, 11)
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    found = load_run(str(tiny_llama(tmp_path_factory.mktemp("model"), seed=3)))
    found.model.to(getattr(torch, request.param))
    return found


def options(loaded: Loaded, **changes: Any) -> dict[str, Any]:
    settings = {"max_new_tokens": 16, "stop_ids": loaded.stop_ids, "batch_size": 16, "pad_id": loaded.pad_id}
    return {**settings, **changes}


def test_answers_are_those_of_prompts_alone(loaded: Loaded) -> None:
    assert continuous.row_sizes(loaded.model)
    together = continuous.generate(loaded.model, PROMPTS, **options(loaded))
    alone = [continuous.generate(loaded.model, [prompt], **options(loaded))[0] for prompt in PROMPTS[:6]]
    assert together[:6] == alone
    if next(loaded.model.parameters()).dtype == torch.float32:  # in bfloat16 equal logits are common
        assert together == generation.generate(loaded.model, PROMPTS, **options(loaded))
    sampling = generation.Sampling(0.7, seed=4)
    sampled = continuous.generate(loaded.model, PROMPTS, **options(loaded, sampling=sampling))
    (one,) = continuous.generate(
        loaded.model, [PROMPTS[5]], **options(loaded, sampling=sampling, numbers=[5])
    )
    assert sampled[5] == one != together[5]


def test_logits_have_the_same_bits_in_every_row(loaded: Loaded) -> None:
    """The control: the same tokens in a batch of another shape have other bits, so that the test can fail."""

    def step(rows: list[list[int]]) -> torch.Tensor:
        batch = ContinuousBatch(loaded.model, loaded.pad_id, continuous.row_sizes(loaded.model))
        for prompt in rows:
            batch.start(Answer(prompt, 5, frozenset()))
        return batch._logits(batch.answers)

    with continuous.decoding(loaded.model):
        alone = step([PROMPTS[1]])[0]
        for at in (0, 7, 15):
            rows = [PROMPTS[2]] * 16
            rows[at] = PROMPTS[1]
            assert torch.equal(step(rows)[at], alone)
        rows = [PROMPTS[2], PROMPTS[3], PROMPTS[5], PROMPTS[1]]
        few, many = step(rows), step([*rows, *rows])
        assert torch.equal(few, many[:4]), "few answers have the bits that they have among many"
        assert len(many) == 16
        static = [loaded.model(input_ids=torch.tensor([[9]] * rows)).logits[0, -1] for rows in (1, 16)]
    if alone.dtype == torch.float32:
        assert not all(torch.equal(static[0], other) for other in static)


class Mixes(nn.Module):
    """A module whose rows depend on each other a little."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states + 1e-6 * states.mean())


def test_a_model_whose_rows_depend_on_each_other_is_found(tmp_path: Path) -> None:
    loaded = load_run(str(tiny_llama(tmp_path / "model")))
    expected = generation.generate(loaded.model, PROMPTS[:3], **options(loaded))
    loaded.model.model.layers[0].mlp = Mixes(loaded.model.model.layers[0].mlp)
    assert not continuous.row_sizes(loaded.model)
    assert continuous.generate(loaded.model, PROMPTS[:3], **options(loaded)) == expected


def test_each_adapter_of_a_model_has_its_own_proof(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", seed=3)
    loaded = load_run(str(random_adapter(tmp_path / "adapter", base, seed=1)))
    layer = next(module for name, module in loaded.model.named_modules() if name.endswith("lora_B.default"))
    layer.register_forward_hook(lambda module, args, out: out + 1e-6 * out.mean())
    with loaded.without_adapter():
        assert continuous.row_sizes(loaded.model)
    assert not continuous.row_sizes(loaded.model)
    with loaded.without_adapter():
        assert continuous.row_sizes(loaded.model)


def test_few_answers_take_few_rows_where_that_changes_no_bit(
    tmp_path: Path,
) -> None:
    """The control: a model whose bits do depend on the number of rows always computes all of them."""
    loaded = load_run(str(tiny_llama(tmp_path / "model", seed=3)))
    sizes: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    expected = continuous.generate(loaded.model, PROMPTS[:1], **options(loaded))
    assert sizes[-1] == continuous.row_sizes(loaded.model)[0]
    continuous.generate(loaded.model, PROMPTS[:9], **options(loaded))
    assert max(sizes) == 16
    add = Offset(loaded.model.model.layers[0].mlp)
    loaded.model.model.layers[0].mlp = add
    continuous._proven.clear()
    changed = continuous.generate(loaded.model, PROMPTS[:1], **options(loaded))
    assert continuous.row_sizes(loaded.model) == (16,)
    assert sizes[-1] == 16
    assert len(changed) == len(expected)


class Offset(nn.Module):
    """A module whose bits depend on the number of rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states) * (1 + 1e-6 * (len(states) == continuous.FEW))


@pytest.mark.parametrize(
    ("family", "attends"), [("bamba", False), ("recurrent_gemma", False), ("gpt2", True)]
)
def test_a_model_with_a_recurrent_state_takes_no_part(family: str, attends: bool, tmp_path: Path) -> None:
    """A step would drop the state, and in a tiny model this looks like rounding."""
    FAMILIES[family].make(tmp_path / "model")
    loaded = load_run(str(tmp_path / "model"))
    loaded.model.to(torch.bfloat16)
    assert bool(continuous.row_sizes(loaded.model)) == attends
    prompts = PROMPTS[:3]
    answers = [continuous.generate(loaded.model, [prompt], **options(loaded))[0] for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert generation.generate(loaded.model, [prompt], **options(loaded)) == [answer]


def test_a_sliding_window(tmp_path: Path) -> None:
    """Prompts and answers longer than the window."""
    from transformers import MistralConfig, MistralForCausalLM

    from tests.helpers.models import byte_tokenizer

    torch.manual_seed(0)
    sizes = {"vocab_size": 261, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8}
    config = MistralConfig(**sizes, **heads, initializer_range=0.15, eos_token_id=2)
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    loaded = load_run(str(byte_tokenizer(tmp_path / "model")))
    assert continuous.row_sizes(loaded.model)
    answers = continuous.generate(loaded.model, PROMPTS[:5], **options(loaded))
    assert answers == generation.generate(loaded.model, PROMPTS[:5], **options(loaded, batch_size=1))


def test_a_prompt_that_fills_the_context(tmp_path: Path) -> None:
    loaded = load_run(str(tiny_llama(tmp_path / "model", max_position_embeddings=20)))
    short = continuous.generate(loaded.model, [PROMPTS[3], PROMPTS[0]], **options(loaded))
    assert [len(answer) for answer in short] == [3, 16]
    from tailor.errors import DataError

    with pytest.raises(DataError, match="leaves no room"):
        continuous.generate(loaded.model, [PROMPTS[1]], **options(loaded))
