"""Generation: batches give the same answers as single prompts, and the model and the random state are not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.load import load_run
from tailor.evaluate import generation
from tailor.evaluate.generation import Sampling, generate, pad_left
from tailor.models import attention
from tests.helpers.families import FAMILIES
from tests.helpers.models import tiny_llama

LENGTHS = (3, 17, 8, 30, 1, 12)
PAD = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    attention.register()
    folder = tiny_llama(tmp_path_factory.mktemp("model"))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.set_attn_implementation(attention.NAME)
    return network


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 261, (length,), generator=generator).tolist() for length in LENGTHS]


def answers(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    return generate(
        model, prompts, **{"max_new_tokens": 12, "stop_ids": [4], "batch_size": 4, "pad_id": PAD, **settings}
    )


def by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy, without a cache, padding or transformers' generate."""
    model.set_attn_implementation("sdpa")
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    model.set_attn_implementation(attention.NAME)
    return ids[len(prompt) :]


def test_batched_equals_one_by_one_in_the_given_order(model: Any, prompts: list[list[int]]) -> None:
    batched = answers(model, prompts)
    assert batched == [answers(model, [prompt])[0] for prompt in prompts]
    assert batched == [generation.before_stop(by_hand(model, prompt, 12), [4]) for prompt in prompts]


@pytest.mark.parametrize("family", ["minimax", "jamba", "falcon_h1"])
def test_batched_equals_one_by_one_with_recurrent_layers(family: str, tmp_path: Path) -> None:
    FAMILIES[family].make(tmp_path / "model")
    loaded = load_run(str(tmp_path / "model"))
    prompts = [
        [7 * at % 250 + 5 for at in range(start, start + length)] for start, length in ((1, 20), (9, 25))
    ]
    settings = {"max_new_tokens": 10, "stop_ids": loaded.stop_ids, "pad_id": loaded.pad_id}
    single = [generate(loaded.model, [prompt], batch_size=1, **settings)[0] for prompt in prompts]
    assert generate(loaded.model, prompts, batch_size=2, **settings) == single


def test_control_padding_on_the_wrong_side_changes_answers(
    model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answers(model, prompts)

    def pad_right(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_left([row[::-1] for row in rows], pad_id)
        return ids.flip(1), mask.flip(1)

    monkeypatch.setattr(generation, "pad_left", pad_right)
    assert answers(model, prompts) != right


def test_the_stop_token_ends_an_answer_and_is_left_out(model: Any, prompts: list[list[int]]) -> None:
    free = answers(model, prompts, stop_ids=[])
    assert all(len(answer) == 12 for answer in free)
    stop = free[0][5]
    for whole, stopped in zip(free, answers(model, prompts, stop_ids=[stop, 4]), strict=True):
        assert stopped == generation.before_stop(whole, [stop, 4])


def test_no_prompts_and_an_empty_prompt(model: Any) -> None:
    assert answers(model, []) == []
    assert answers(model, [[], [7, 8]]) == [[], answers(model, [[7, 8]])[0]]


@pytest.mark.parametrize("training", [True, False])
def test_mode_attention_and_random_state_are_restored(
    model: Any, prompts: list[list[int]], training: bool
) -> None:
    model.train(training)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    answers(model, prompts, sampling=Sampling(1.0))
    assert torch.equal(torch.rand(3), expected)
    assert model.training is training
    assert model.config._attn_implementation == attention.NAME
    model.eval()


def test_they_are_restored_when_generation_fails(model: Any) -> None:
    model.train()
    with pytest.raises(IndexError):
        answers(model, [[5, 10_000]])
    assert model.training
    assert model.config._attn_implementation == attention.NAME
    model.eval()


def test_a_seed_decides_the_samples(model: Any, prompts: list[list[int]]) -> None:
    first = answers(model, prompts, sampling=Sampling(1.0, seed=1))
    assert first == answers(model, prompts, sampling=Sampling(1.0, seed=1))
    assert first != answers(model, prompts, sampling=Sampling(1.0, seed=2))
    assert answers(model, prompts, sampling=Sampling(1.0, 1e-6, seed=2)) == answers(model, prompts)


def test_tokens_come_one_by_one(model: Any, prompts: list[list[int]]) -> None:
    seen: list[int] = []
    (answer,) = answers(model, prompts[:1], on_token=seen.append)
    assert generation.before_stop(seen, [4]) == answer


def test_a_compiled_decoder_is_not_recompiled(model: Any, prompts: list[list[int]]) -> None:
    expected, calls = answers(model, prompts), []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph

    decoder = model.get_decoder()
    decoder.compile(backend=backend)
    try:
        assert answers(model, prompts) == expected
    finally:
        decoder._compiled_call_impl = None
    assert not calls


def test_generation_config_of_the_model_has_no_effect(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder = tiny_llama(tmp_path)
    plain = answers(AutoModelForCausalLM.from_pretrained(folder), [[5, 6, 7]])
    GenerationConfig(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0).save_pretrained(folder)
    assert answers(AutoModelForCausalLM.from_pretrained(folder), [[5, 6, 7]]) == plain


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, seed=3), Sampling(0.8, 0.9, seed=3)])
def test_batching_changes_no_answer(model: Any, prompts: list[list[int]], sampling: Sampling | None) -> None:
    """Greedy and sampled answers are the same alone, in batches of any size, and in another order."""
    expected = answers(model, prompts, batch_size=1, sampling=sampling)
    for batch_size in (2, 3, 64):
        assert answers(model, prompts, batch_size=batch_size, sampling=sampling) == expected
    numbers = list(range(len(prompts)))[::-1]
    turned = answers(model, prompts[::-1], numbers=numbers, sampling=sampling)
    assert turned[::-1] == expected
    if sampling:
        assert answers(model, prompts[::-1], sampling=sampling)[::-1] != expected, "the control: draws differ"


def test_samples_follow_the_models_probabilities() -> None:
    """Token frequencies match the softmax; with top_p only the most probable tokens are sampled."""
    scores = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5]).repeat(4000, 1)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.7)):
        chances = (scores[0] / temperature).softmax(0)
        kept, order = torch.zeros(5), chances.argsort(descending=True)
        for token in order:
            if kept.sum() >= top_p:
                break
            kept[token] = chances[token]
        draw = generation.Draw([(7, row) for row in range(len(scores))], temperature, top_p)
        drawn = draw(torch.zeros(0), scores).argmax(-1)
        shares = torch.bincount(drawn, minlength=5) / len(drawn)
        assert torch.allclose(shares, kept / kept.sum(), atol=0.03)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """The quotients of the scores by it may be infinite."""
    scores = torch.tensor([[-30.0, 2.0, float("-inf"), 2.5], [7.0, -2.0, 0.0, 6.0]])
    draw = Sampling(temperature, seed=1).draw([0, 1])
    assert draw is not None
    assert draw(torch.zeros(0), scores).argmax(-1).tolist() == [3, 0]  # type: ignore[arg-type]


def test_a_long_prompt_does_not_shorten_other_answers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    short = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, max_position_embeddings=40))
    rows = [[7] * 5, [9] * 36, [8] * 33]
    together = answers(short, rows, stop_ids=[])
    assert together == [answers(short, [row], stop_ids=[])[0] for row in rows]
    assert [len(answer) for answer in together] == [12, 4, 7]


def test_tokens_bound_a_batch() -> None:
    lengths = [30, 10, 10, 90, 10, 31]
    found = list(generation.batches(lengths, 4, 10, None, batch_tokens=80))
    assert found == [[1, 2, 4], [0], [5], [3]]
    assert list(generation.batches(lengths, 4, 10, None)) == [[1, 2, 4, 0], [5, 3]]
