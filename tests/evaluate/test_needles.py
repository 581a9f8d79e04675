"""Needle variants: several values in prompts of exact length, each at its exact depth, and the share of them that is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import DataError
from tailor.evaluate import context_lengths
from tailor.evaluate.figures import wilson
from tailor.evaluate.inputs import ModelInputs
from tailor.evaluate.results import Results, results
from tailor.evaluate.tasks.base import make_evaluators
from tailor.evaluate.tasks.grid import GridEvaluator, NeedlePrompt
from tailor.evaluate.tasks.needles import KEYS
from tailor.runs import context_lengths as shown
from tailor.runs.report import heatmap
from tailor.spec.suite import Decoding
from tailor.spec.tasks.lengths import FILLER
from tailor.spec.tasks.registry import task_class
from tests.helpers.judges import Kept
from tests.helpers.models import byte_tokenizer

DEPTHS = [0.0, 0.3, 0.5, 0.9, 1.0]
NAMES = ("needle_multi_key", "needle_multi_value", "needle_multi_query", "variable_tracking")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), bos=True)))


def evaluator(name: str, **values: Any) -> GridEvaluator[Any]:
    keys = {"name": name, "lengths": [1300, 1000], "depths": DEPTHS, "samples": 2, **values}
    (made,) = make_evaluators([task_class(name).model_validate(keys)])
    assert isinstance(made, GridEvaluator)
    return made


def prompts(made: GridEvaluator[Any], tokenizer: Tokenizer, *, plain: bool = True) -> list[NeedlePrompt]:
    return made.prompts(made.haystack(), tokenizer, plain=plain)


HIDDEN = {
    "variable_tracking": re.compile(r"\nVAR ([A-Z]{5}) = (?:VAR )?(\w+)\n"),
    **dict.fromkeys(NAMES[:3], re.compile(r"\nOne of the special magic numbers for (\S+) is: (\d+)\.\n")),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_length_and_every_depth_are_exact(tokenizer: Tokenizer, name: str, plain: bool) -> None:
    made = evaluator(name)
    found = prompts(made, tokenizer, plain=plain)
    assert len(found) == 2 * len(DEPTHS) * 2
    head = "<s>" if plain else "<|im_start|>user\n"
    for prompt in found:
        assert len(prompt.ids) == prompt.location["length"]
        text = tokenizer.decode(prompt.ids).removeprefix(head)
        body, question, _ = text.rpartition("\nWhat are" if name in NAMES[:3] else "\nFind all")
        assert question
        hidden = [match[0] for match in HIDDEN[name].finditer(body)]
        bare = body
        for needle in hidden:
            bare = bare.replace(needle, "", 1)
        assert (FILLER * 9).startswith(bare), "nothing else is in the haystack"
        before = len(tokenizer.encode(head))
        for value, start, cell in zip(prompt.values, prompt.starts, prompt.cells, strict=True):
            needle = next(text for text in hidden if value in text.split("=")[0].split(": ")[-1])
            assert tokenizer.decode(prompt.ids[start : start + len(needle)]) == needle
            others = sum(len(text) for text in hidden if body.index(text) < start - before)
            if name != "variable_tracking":
                assert start - before - others == round(cell * len(bare))
        if name == "variable_tracking":
            first = prompt.starts[0] - before
            assert first == round(prompt.location["depth"] * len(bare))
            assert set(prompt.cells) == {prompt.location["depth"]}


def test_what_is_asked_has_the_expected_values(tokenizer: Tokenizer) -> None:
    """The needles as a program reads them."""

    def pairs(prompt: NeedlePrompt) -> tuple[list[tuple[str, str]], str]:
        text = tokenizer.decode(prompt.ids)
        return HIDDEN[NAMES[0]].findall(text), text.rpartition("\nWhat are")[2]

    for prompt in prompts(evaluator("needle_multi_key", keys=5), tokenizer):
        hidden, question = pairs(prompt)
        asked = [(key, value) for key, value in hidden if key in question]
        assert (len(hidden), tuple(value for _, value in asked)) == (5, prompt.values)
        assert len(prompt.values) == 1
    for prompt in prompts(evaluator("needle_multi_value", values=3), tokenizer):
        hidden, question = pairs(prompt)
        assert len({key for key, _ in hidden}) == 1
        assert hidden[0][0] in question
        assert {value for _, value in hidden} == set(prompt.values)
        assert len(set(prompt.values)) == len(set(prompt.cells)) == 3
    for prompt in prompts(evaluator("needle_multi_query", queries=2), tokenizer):
        hidden, question = pairs(prompt)
        assert {value for _, value in hidden} == set(prompt.values)
        assert all(key in question for key, _ in hidden)
        assert len({key for key, _ in hidden}) == 2
        assert prompt.max_new_tokens == 128, "as many as RULER allows, to repeat the question"
    assert len(set(KEYS)) == len(KEYS) >= 256


def test_the_chain_leads_to_the_expected_variables(tokenizer: Tokenizer) -> None:
    for prompt in prompts(evaluator("variable_tracking", hops=3, chains=3), tokenizer):
        text = tokenizer.decode(prompt.ids)
        question = text.rpartition("\nFind all")[2]
        variables: dict[str, str] = {}
        for name, source in HIDDEN["variable_tracking"].findall(text):
            variables[name] = variables[source] if source.isalpha() else source  # KeyError: used before
        (asked,) = set(re.findall(r"\d{5}", question))
        assert {name for name, value in variables.items() if value == asked} == set(prompt.values)
        assert len(variables) == 12, "the control: there are other chains, with other values"
        assert "4 variables" in question


def test_a_prompt_depends_only_on_its_grid_position(tokenizer: Tokenizer) -> None:
    for name in NAMES:
        few = prompts(evaluator(name, lengths=[1000], samples=1), tokenizer)
        more = prompts(evaluator(name), tokenizer)
        assert all(prompt in more for prompt in few)
        assert prompts(evaluator(name, seed=1), tokenizer) != more


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("They are 1111111, 2222222, and 3333333.", 1.0), ("3333333\n1111111", 2 / 3), ("none", 0.0),
        ("11111112222222", 2 / 3),
    ],
)  # fmt: skip
def test_the_score_is_rulers(answer: str, share: float) -> None:
    expected = ["1111111", "2222222", "3333333"]
    ruler = sum([1.0 if ref.lower() in answer.lower() else 0.0 for ref in expected]) / len(expected)
    hits = evaluator("needle_multi_value").found(answer, expected)
    assert sum(hits) / len(hits) == ruler == share
    assert evaluator("variable_tracking").found("vars: abcde", ["ABCDE"]) == [True]


def judged(made: GridEvaluator[Any], tokenizer: Tokenizer, knows: Any) -> Results:
    """The results of a model that answers with the values that `knows`."""
    inputs = {"m": ModelInputs([made.inputs_of(prompts(made, tokenizer), tokenizer)])}
    batches = inputs["m"].batches("m", Decoding(batch_size=3))

    def answer(prompt: NeedlePrompt) -> list[int]:
        cells = zip(prompt.values, prompt.cells, strict=True)
        return tokenizer.encode(" ".join(value for value, cell in cells if knows(prompt, cell)))

    done = [[answer(prompt) for prompt in batch.inputs] for batch, _ in batches]
    return results([made], inputs, batches, done, Kept())


@pytest.mark.parametrize("name", ["needle_multi_value", "needle_multi_query"])
def test_a_value_counts_at_its_own_depth(tokenizer: Tokenizer, name: str) -> None:
    """A model that reads only the first half of texts."""
    made = evaluator(name)
    found = judged(made, tokenizer, lambda prompt, cell: cell <= 0.5)
    grid = found.summary["grids"][name]
    assert grid["models"]["m"] == [[1, 1, 1, 0, 0]] * 2
    assert grid["prompts"] == [[8] * 5] * 2, "each depth has a value of four in five prompts, with 2 samples"
    figures = {key: figure.value for key, figure in found.figures["m"].items()}
    assert figures == pytest.approx({name: 0.6, f"{name}_1000": 0.6, f"{name}_1300": 0.6})
    row = found.rows[f"{name}.jsonl"][0]
    assert len(row["values"]) == len(row["starts"]) == 4
    assert 0 < row["models"]["m"]["found"] < 1


def test_the_effective_length_is_the_longest_with_the_score(tokenizer: Tokenizer) -> None:
    made = evaluator("variable_tracking", threshold=0.9)
    found = judged(made, tokenizer, lambda prompt, cell: prompt.location["length"] == 1000)
    by_length = found.summary["by_length"]["variable_tracking"]
    assert by_length == {"threshold": 0.9, "lengths": [1000, 1300], "scores": {"m": [1.0, 0.0]}}
    effective = context_lengths.effective(by_length, {"m": 2048})
    assert effective["models"] == {"m": {"claimed": 2048, "effective": 1000}}
    assert list(shown.lines({"variable_tracking": effective})) == [
        "variable_tracking: m: claimed 2,048 tokens, effective 1,000 (score of at least 90 %)"
    ]
    assert {key: effective[key] for key in by_length} == by_length, "the scores stay beside it"
    uneven = {"threshold": 0.5, "lengths": [8, 16, 32], "scores": {"a": [0.6, 0.4, 0.5], "b": [0, 0, 0.49]}}
    of = context_lengths.effective(uneven, {"a": None, "b": 4})
    assert of["models"] == {
        "a": {"claimed": None, "effective": 32},
        "b": {"claimed": 4, "effective": None},
    }
    assert list(shown.lines({"x": of})) == [
        "x: a: claimed unknown tokens, effective 32 (the longest evaluated) (score of at least 50 %)",
        "x: b: claimed 4 tokens, effective none of the lengths up to 32 (score of at least 50 %)",
    ]


def test_the_mean_of_the_tasks_has_an_effective_length_too() -> None:
    one = {"threshold": 0.856, "lengths": [8, 16], "scores": {"m": [1.0, 0.9], "b": [1.0, 0.0]}}
    other = {**one, "scores": {"m": [0.9, 0.8], "b": [0.5, 0.5]}}
    by_length = {"needle": one, "passkey": other, "ruler": {**one, "lengths": [4096, 8192]}}
    found = context_lengths.with_mean(by_length, ["needle", "passkey"])
    assert list(found) == [*by_length, "mean of 2 tasks"]
    mean = found["mean of 2 tasks"]
    assert mean["scores"] == {"m": pytest.approx([0.95, 0.85]), "b": pytest.approx([0.75, 0.25])}
    effective = context_lengths.effective(mean, {"m": 16, "b": 16})["models"]
    assert [effective[model]["effective"] for model in ("m", "b")] == [8, None]
    for changed in ({"lengths": [8, 32]}, {"threshold": 0.5}):
        assert context_lengths.with_mean(
            {"needle": one, "passkey": {**other, **changed}}, ["needle", "passkey"]
        ).keys() == {
            "needle",
            "passkey",
        }, "the control: they have no common mean"
    assert context_lengths.with_mean(by_length, ["needle"]) == by_length


def test_cells_have_intervals_that_few_equal_results_do_not_close() -> None:
    assert wilson(1.0, 5, 0.95) == pytest.approx((0.56552, 1.0), abs=1e-5)
    assert wilson(0.8, 10, 0.95) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert wilson(0.0, 5, 0.95) == pytest.approx((0.0, 0.43448), abs=1e-5)
    grid = {"lengths": [8], "depths": [0.0, 1.0], "prompts": [[5, 10]], "models": {"m": [[1.0, 0.8]]}}
    found = context_lengths.with_intervals(grid, 0.95)
    assert found["intervals"]["m"][0] == [wilson(1.0, 5, 0.95), wilson(0.8, 10, 0.95)]
    png = heatmap.draw_grid("passkey", found)
    assert png.startswith(b"\x89PNG")
    assert png != heatmap.draw_grid("passkey", grid), "the control: the picture without intervals"


def test_lengths_that_are_too_short_are_reported(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        DataError, match=r"variable_tracking: lengths: 200 tokens are too few for the needles"
    ):
        prompts(evaluator("variable_tracking", lengths=[200]), tokenizer)
    made = evaluator("needle_multi_key", data={"path": "x"})
    with pytest.raises(DataError, match="needle_multi_key: the texts have 9 tokens in total"):
        made.prompts(["too short"], tokenizer, plain=True)


@pytest.mark.parametrize("name", [*NAMES, "passkey"])
def test_a_haystack_without_tokens_is_reported(tmp_path: Path, name: str) -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(prompts(evaluator(name, filler="word "), tokenizer)[0].ids) == 1000, "the control"
    with pytest.raises(DataError, match=f"^{name}: the haystack has no tokens"):
        prompts(evaluator(name, filler=" "), tokenizer)
