"""Hidden values: prompts of exact length with the value at its exact depth, and what counts as finding it."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import DataError
from tailor.evaluate.inputs import ModelInputs
from tailor.evaluate.results import results
from tailor.evaluate.tasks.grid import NeedlePrompt
from tailor.evaluate.tasks.hidden_value import is_found
from tailor.evaluate.tasks.needle import NeedleEvaluator
from tailor.evaluate.tasks.passkey import PasskeyEvaluator
from tailor.runs.report import heatmap
from tailor.spec.suite import Decoding
from tailor.spec.tasks.lengths import FILLER, Needle, Passkey
from tests.helpers.judges import Kept
from tests.helpers.models import byte_tokenizer

DEPTHS = [0.0, 0.1, 0.5, 0.99, 1.0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), bos=True)))


def passkey(**values: Any) -> Passkey:
    return Passkey(**{"name": "passkey", "lengths": [400, 256], "depths": DEPTHS, "samples": 2, **values})


def prompts(
    task: Passkey | Needle, haystack: list[str], tokenizer: Tokenizer, *, plain: bool
) -> list[NeedlePrompt]:
    evaluator = PasskeyEvaluator if isinstance(task, Passkey) else NeedleEvaluator
    return evaluator(task, "tasks[0]").prompts(haystack, tokenizer, plain=plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("plain", [True, False])
def test_length_and_depth_are_exact(tokenizer: Tokenizer, plain: bool) -> None:
    task = passkey()
    found = prompts(task, [task.filler], tokenizer, plain=plain)
    assert len(found) == 2 * len(DEPTHS) * 2
    before = 1 if plain else len(tokenizer.encode("<|im_start|>user\n"))
    for prompt in found:
        length, depth = prompt.location["length"], prompt.location["depth"]
        assert len(prompt.ids) == length
        needle = tokenizer.encode(task.needle.replace("{value}", prompt.values[0]))
        assert prompt.ids[prompt.starts[0] : prompt.starts[0] + len(needle)] == needle
        end = tokenizer.decode(prompt.ids[prompt.starts[0] + len(needle) :])
        tail = task.question if plain else f"{task.question}<|im_end|>\n<|im_start|>assistant\n"
        assert end.endswith(tail)
        room = length - before - len(needle) - len(tokenizer.encode(tail))
        assert prompt.starts[0] - before == round(depth * room)
        filler = tokenizer.decode(prompt.ids[before : prompt.starts[0]]) + end.removesuffix(tail)
        assert (FILLER * 9).startswith(filler)
        assert prompt.values[0] in tokenizer.decode(prompt.ids)


def test_a_prompt_depends_only_on_its_grid_position(tokenizer: Tokenizer) -> None:
    few = prompts(passkey(lengths=[256], samples=1, depths=[0.5]), [FILLER], tokenizer, plain=True)
    more = prompts(passkey(samples=3), [FILLER], tokenizer, plain=True)
    assert few[0] in more
    assert len({prompt.values[0] for prompt in more}) == len(more)
    other = prompts(passkey(seed=1), [FILLER], tokenizer, plain=True)
    assert {prompt.values[0] for prompt in other} != {prompt.values[0] for prompt in more}


def test_a_haystack_of_texts(tokenizer: Tokenizer) -> None:
    texts = ["".join(chr(ord("a") + (at * at // 7) % 26) for at in range(300)), "Z" * 200]
    task = Needle(name="needle", lengths=[300], data={"path": "x"}, samples=4)  # type: ignore[arg-type]
    found = prompts(task, texts, tokenizer, plain=True)
    whole = "".join(texts)
    starts = set()
    for prompt in found:
        needle = task.needle.replace("{value}", prompt.values[0])
        around = tokenizer.decode(prompt.ids[1:]).removesuffix(task.question).replace(needle, "")
        assert around in whole
        starts.add(whole.index(around))
    assert len(starts) > 3, "texts begin at many places of the haystack"
    with pytest.raises(
        DataError, match="have 300 tokens in total, fewer than the largest of lengths \\(700\\)"
    ):
        prompts(task.model_copy(update={"lengths": [700]}), texts[:1], tokenizer, plain=True)


def test_a_length_that_is_too_short_is_reported(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"passkey: lengths: 64 tokens are too few .* which need 99"):
        prompts(passkey(lengths=[64]), [FILLER], tokenizer, plain=True)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("12345", True), (" It is 12345.", True), ("12345 and 99", True), ("The key: 12345</s>", True),
        ("123456", False), ("1234", False), ("99, not 12345", False), ("", False), ("one two", False),
    ],
)  # fmt: skip
def test_the_first_number_of_the_answer_is_compared(answer: str, right: bool) -> None:
    assert is_found(answer, "12345") is right


def test_the_grid_has_the_shares_found(tokenizer: Tokenizer) -> None:
    """A model that finds values in the first half of short texts."""
    task = passkey(depths=[0.0, 0.5, 1.0], samples=4)
    asked = prompts(task, [FILLER], tokenizer, plain=True)
    evaluator = PasskeyEvaluator(task, "tasks[0]")
    inputs = {"m": ModelInputs([evaluator.inputs_of(asked, tokenizer)])}
    batches = inputs["m"].batches("m", Decoding(batch_size=3))
    assert sorted(at for batch, _ in batches for at in batch.items) == list(range(len(asked)))
    for batch, _ in batches:
        assert len({len(prompt.ids) for prompt in batch.inputs}) == 1, "nothing is padded"

    def answer(prompt: NeedlePrompt) -> list[int]:
        knows = (
            prompt.location["length"] == 256
            and prompt.location["depth"] < 1
            and prompt.location["sample"] > 1
        )
        return tokenizer.encode(f" {prompt.values[0]}." if knows else " 7.")

    done = [[answer(prompt) for prompt in batch.inputs] for batch, _ in batches]
    judged = results([evaluator], inputs, batches, done, Kept())
    found = judged.summary["grids"]["passkey"]
    assert (found["lengths"], found["depths"]) == ([256, 400], [0.0, 0.5, 1.0])
    assert found["models"]["m"] == [[0.75, 0.75, 0.0], [0.0, 0.0, 0.0]]
    figures = {name: figure.value for name, figure in judged.figures["m"].items()}
    assert figures == {"passkey": 0.25, "passkey_256": 0.5, "passkey_400": 0.0}
    assert judged.rows["passkey.jsonl"][0]["value"] == asked[0].values[0]
    text = heatmap.lines("passkey", found, unicode=False)
    assert text[2].split() == ["256", "75", "75", "0"]
    assert heatmap.lines("passkey", found)[2].split() == ["256", "▓▓", "75", "▓▓", "75", "0"]
    assert heatmap.draw_grid("passkey", found).startswith(b"\x89PNG")
