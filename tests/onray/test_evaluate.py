"""Evaluations of a trained run: the metrics, the comparison with the base, and the files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import mean

import pytest
import torch

import tailor
from tailor.artifacts.load import load_run
from tailor.encode.prompts import answer_text
from tailor.errors import DataError, GateError, ModelError
from tailor.evaluate.tasks.forgetting import built_in
from tailor.spec.load import load_evaluation, with_overrides
from tests.evaluate.test_scores import squad_f1
from tests.helpers.evaluations import all_tasks, made, make_recipe, value, write_rows

pytestmark = pytest.mark.timeout(240)


def test_every_task_with_the_base_for_comparison(place: Path) -> None:
    outcome = made(place, {"tasks": all_tasks(place), "name": "all"})
    names = [entry["figure"] for entry in outcome.results["figures"]]
    assert names == [
        "loss", "perplexity", "token_accuracy", "exact_match", "f1", "rouge1", "rouge2", "rougeL", "rougeLsum",
        "accuracy", "accuracy_norm", "facts",
    ]  # fmt: skip
    folder = place / "runs/tiny/evaluation/all"
    assert {path.name for path in folder.iterdir()} == {
        "COMMIT", "answers.jsonl", "choices.jsonl", "evaluation.yaml", "facts.jsonl", "figures.png",
        "passages.jsonl", "results.json",
    }  # fmt: skip
    assert list(outcome.results["models"]) == ["tiny", "base"]
    for entry in outcome.results["figures"]:
        for found in entry["models"].values():
            low, high = found["interval"]
            assert low <= found["value"] <= high
    assert value(outcome, "loss") < value(outcome, "loss", "base")
    assert not (place / "runs/tiny/evaluation/all.unfinished").exists()
    assert "Evaluation: all" in (place / "runs/tiny/report.html").read_text()
    assert "Evaluation all" in tailor.Run(place / "runs/tiny").summary()
    for model in ("tiny", "base"):
        for figure, expected in by_reference(folder, model).items():
            assert value(outcome, figure, model) == pytest.approx(expected, rel=1e-9), figure
    assert 0 < value(outcome, "f1") < 1, "the control: the answers are neither all correct nor all wrong"
    again = made(place, {"tasks": all_tasks(place), "name": "again"})
    assert again.results["figures"] == outcome.results["figures"]
    repeated = load_evaluation(folder / "evaluation.yaml")
    assert repeated.tasks == with_overrides({"tasks": all_tasks(place)}, "e", ()).tasks


def by_reference(folder: Path, model: str) -> dict[str, float]:
    """The metrics of the written answers by independent code: rouge-score, SQuAD's F1, and plain Python."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    library = RougeScorer(kinds)
    answers, facts = (
        [json.loads(line) for line in (folder / file).read_text().splitlines()]
        for file in ("answers.jsonl", "facts.jsonl")
    )
    pairs = [(row["models"][model]["answer"], row["reference"]) for row in answers]
    rouge = [library.score(reference, answer) for answer, reference in pairs]
    texts = [row["models"][model]["answer"].lower() for row in facts]
    alternatives = [[fact if isinstance(fact, list) else [fact] for fact in row["facts"]] for row in facts]
    shares = [
        mean(
            any(re.search(rf"(?<!\w){re.escape(way.lower())}(?!\w)", text) is not None for way in fact)
            for fact in own
        )
        for text, own in zip(texts, alternatives, strict=True)
    ]
    return {
        "exact_match": mean(answer == reference for answer, reference in pairs),
        "f1": mean(squad_f1(*pair) for pair in pairs),
        **{kind: mean(scores[kind].fmeasure for scores in rouge) for kind in kinds},
        "facts": mean(shares),
    }


@pytest.mark.slow
def test_perplexity_and_answers_equal_plain_transformers(place: Path) -> None:
    """The tuned model and its base, with full logits and a hand-written greedy loop."""
    outcome = made(place, {"tasks": [{"name": "perplexity"}, {"name": "exact_match"}], "limit": None})
    loaded = load_run(str(place / "runs/tiny"))
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    kept = [
        json.loads(line) for line in (place / "runs/tiny/evaluation/x/answers.jsonl").read_text().splitlines()
    ]
    assert outcome.results["rows"]["available"] == len(kept) > 5
    for model in ("tiny", "base"):
        loss = tokens = hits = 0.0
        network = loaded.model if model == "tiny" else loaded.model.unload()
        for row in kept:
            turns = rows[row["row"] - 1]["messages"]
            prompt = loaded.prompt_ids(turns[:1])
            answer = loaded.tokenizer.encode(turns[1]["content"] + "<|im_end|>")
            with torch.no_grad():
                chances = network(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
                said = list(prompt)
                for _ in range(8):
                    said.append(int(network(torch.tensor([said])).logits[0, -1].argmax()))
                    if said[-1] in loaded.stop_ids:
                        said.pop()
                        break
            loss -= sum(float(chances[len(prompt) + at - 1, token]) for at, token in enumerate(answer))
            hits += sum(
                int(chances[len(prompt) + at - 1].argmax()) == token for at, token in enumerate(answer)
            )
            tokens += len(answer)
            assert row["reference"] == turns[1]["content"]
            text = answer_text(loaded.tokenizer, said[len(prompt) :])
            assert row["models"][model]["answer"] == text
        assert value(outcome, "loss", model) == pytest.approx(loss / tokens, rel=1e-5)
        assert value(outcome, "token_accuracy", model) == pytest.approx(hits / tokens)
        assert value(outcome, "perplexity", model) == pytest.approx(math.exp(loss / tokens), rel=1e-5)


def test_choices_equal_a_hand_written_loop(place: Path) -> None:
    outcome = made(place, {"tasks": all_tasks(place)[4:5], "compare": "none", "name": "choices"})
    loaded = load_run(str(place / "runs/tiny"))
    right = right_by_length = 0
    for line in (place / "choices.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = loaded.prompt_ids([{"role": "user", "content": row["question"]}])
        scores = []
        for choice in row["choices"]:
            answer = loaded.tokenizer.encode(choice)
            with torch.no_grad():
                chances = loaded.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            scores.append(sum(float(chances[len(prompt) + at - 1, token]) for at, token in enumerate(answer)))
        by_length = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        right += scores.index(max(scores)) == row["answer"]
        right_by_length += by_length.index(max(by_length)) == row["answer"]
        kept = outcome.folder.read_text("choices.jsonl").splitlines()[int(row["question"][:-1])]
        assert json.loads(kept)["models"]["tiny"]["loglikelihoods"] == pytest.approx(scores, rel=1e-4)
    assert (value(outcome, "accuracy"), value(outcome, "accuracy_norm")) == (right / 5, right_by_length / 5)


def test_the_base_of_an_adapter_equals_the_base_model(place: Path) -> None:
    values = {"tasks": [{"name": "perplexity"}], "limit": 6}
    together = made(place, values, name="with-base")
    compared = made(place, {**values, "compare": [str(place / "base")]}, name="with-folder")
    assert value(together, "loss", "base") == pytest.approx(value(compared, "loss", "base"), rel=1e-6)
    assert value(together, "loss") != pytest.approx(value(together, "loss", "base"), rel=1e-3), "the control"


def test_a_compared_run_uses_its_own_template(place: Path) -> None:
    """The rows are the same, but rendered with each run's template, as in an evaluation of that run alone."""
    changes = {"save.to": place / "runs" / "other", "data.template": "zephyr", "train.steps": 1}
    other = tailor.load(place / "recipe.yaml", changes).run()
    values = {"tasks": [{"name": "perplexity"}, {"name": "f1"}], "limit": 6}
    both = made(place, {**values, "compare": ["base", other.path]}, name="v1.both")
    alone = made(place, {**values, "compare": "none"}, target=other.path)
    for figure in ("loss", "f1"):
        assert value(both, figure, "other") == pytest.approx(value(alone, figure, "other"), rel=1e-6)
    assert list(both.results["models"]) == ["tiny", "base", "other"]
    assert "v1.both" in tailor.Run(place / "runs/tiny").evaluations
    with pytest.raises(ModelError, match="is listed twice, or is the evaluated model itself"):
        made(place, {**values, "compare": [str(place / "runs/tiny")]})


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_batch_size_does_not_change_the_answers(place: Path, temperature: float) -> None:
    def answers(batch_size: int) -> list[str]:
        decoding = {"max_new_tokens": 8, "batch_size": batch_size, "temperature": temperature}
        outcome = made(place, {"tasks": [{"name": "f1"}], "decoding": decoding, "limit": 9})
        return outcome.folder.read_text("answers.jsonl").splitlines()

    assert answers(1) == answers(4) == answers(64)


def test_other_rows_and_a_model_without_a_run(place: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "other.jsonl", [{"prompt": f"{at} and", "response": f" {at}"} for at in range(5)]
    )
    values = {"data": {"evaluation": [{"path": str(rows)}]}}
    outcome = made(place, values, target=place / "base", to=str(tmp_path / "results"))
    assert list(outcome.results["models"]) == ["base"]
    assert (tmp_path / "results" / "COMMIT").is_file()
    assert outcome.results["rows"]["available"] == 5
    long = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 60}])
    chunked = {
        "data": {"evaluation": [{"path": str(long)}], "on_long": "chunk"},
        "tasks": [{"name": "perplexity"}],
    }
    assert made(place, chunked, name="text").results["rows"]["passages"] == 1
    with pytest.raises(DataError, match="no evaluation row can be asked"):
        made(place, {**chunked, "tasks": [{"name": "f1"}]})


def test_chunks_are_checked_against_the_length_that_holds(place: Path, tmp_path: Path) -> None:
    """The evaluation has no max_length of its own, so it is the run's, which is known only here."""
    rows = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 400}])
    data = {"evaluation": [{"path": str(rows)}], "on_long": "chunk"}
    for chunk in ({"overlap": 4096}, {"min_length": 4097}):
        values = {"data": {**data, "chunk": chunk}, "tasks": [{"name": "perplexity"}]}
        with pytest.raises(DataError, match=r"data\.chunk\.\w+: \d+ tokens .* chunk of \d+"):
            made(place, values, name="chunks")


def test_long_context_tasks_with_short_ones(place: Path, tmp_path: Path) -> None:
    """Beyond the 256 positions of the base, with chunked prefill: metrics, rows, plots and the report."""
    rows = write_rows(tmp_path / "long.jsonl", [{"text": "word " * (90 + at)} for at in range(3)])
    write_rows(rows.with_name("mixed.jsonl"), [{"text": "word " * 90}, {"text": "short"}])
    grid = {"lengths": [200, 320], "depths": [0.0, 1.0], "samples": 2}
    tasks = [
        {"name": "perplexity"},
        {"name": "passkey", **grid},
        {"name": "needle", "data": {"path": str(rows)}, **grid},
        {
            "name": "needle_multi_value",
            "values": 2,
            "needle": "{key}: {value}.",
            "question": "{keys}?",
            **grid,
        },
        {
            "name": "long_perplexity",
            "lengths": [64, 400],
            "data": {"path": str(rows.with_name("mixed.jsonl"))},
        },
    ]
    whole = made(place, {"tasks": tasks}, name="long")
    results, folder = whole.results, place / "runs" / "tiny" / "evaluation" / "long"
    names = [entry["figure"] for entry in results["figures"]]
    assert names[3:] == [
        *("passkey", "passkey_200", "passkey_320", "needle", "needle_200", "needle_320"),
        *("needle_multi_value", "needle_multi_value_200", "needle_multi_value_320"),
        *("perplexity_64", "perplexity_400"),
    ]
    assert {entry["better"] for entry in results["figures"][-2:]} == {"lower"}
    assert results["rows"]["short"] == 1
    assert results["grids"]["passkey"]["models"].keys() == {"tiny", "base"}
    measured = ["passkey", "needle", "needle_multi_value", "mean of 3 tasks"]
    assert list(results["effective_lengths"]) == measured
    effective = results["effective_lengths"]["needle_multi_value"]
    assert effective["models"]["base"] == {"claimed": 256, "effective": None}
    low, high = results["grids"]["passkey"]["intervals"]["tiny"][0][0]
    assert low == 0 < 0.6 < high < 0.7, "two prompts that fail say little"
    assert len(results["positions"]["models"]["tiny"]) == 16
    texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    tokens = {read["tokens"] for row in texts for one in row["models"].values() for read in one.values()}
    assert tokens == {449}, "the same tokens at every length: all except the first"
    pictures = ("passkey.png", "needle.png", "needle_multi_value.png", "long_perplexity.png")
    assert all((folder / file).read_bytes().startswith(b"\x89PNG") for file in pictures)
    assert (place / "runs" / "tiny" / "report.html").read_text().count('alt="Metrics of long"') == 5
    line = "Context length: needle_multi_value: tiny: claimed 256 tokens, effective none of the lengths up to 320"
    assert line in (place / "runs" / "tiny" / "report.html").read_text()
    parts = made(place, {"tasks": [{**task, "prefill": 50} for task in tasks[1:]]}, name="parts")
    for figure in names[3:]:
        assert value(parts, figure) == pytest.approx(value(whole, figure), rel=1e-4)
    answers = [
        [json.loads(line)["models"] for line in (place / f"runs/tiny/evaluation/{name}/passkey.jsonl").open()]
        for name in ("long", "parts")
    ]
    assert answers[0] == answers[1]


def test_a_recipe_evaluates_its_finished_run(tmp_path: Path, place: Path) -> None:
    """`evaluate.final`: made once, with the GateError of its bound, and repeated by `tailor evaluate` without a file."""
    final = "evaluate: {final: {tasks: [{name: f1}], limit: 3, decoding: {max_new_tokens: 4}, fail_if: {f1: '< 2'}}}\n"
    recipe = tailor.load(make_recipe(tmp_path, steps=1, more=final))
    with pytest.raises(GateError, match="final: f1 is "):
        recipe.run()
    run = tailor.Run(tmp_path / "runs/tiny")
    assert run.status == "finished"
    assert list(run.evaluations) == ["final"]
    assert run.evaluations["final"].results["failed"]
    assert recipe.run().path == run.path, "a finished run is not repeated"
    assert list(run.evaluate(None, {"fail_if": {}}).results["models"]) == ["tiny", "base"]


def test_figures_by_a_column(place: Path) -> None:
    topics = ["math", "names", "math", "math", None]
    rows = [
        {"prompt": f"{at}?", "response": f"It is {at % 3}.", "topic": topic}
        for at, topic in enumerate(topics)
    ]
    write_rows(place / "topics.jsonl", rows)
    choices = [json.loads(line) for line in (place / "choices.jsonl").read_text().splitlines()]
    write_rows(place / "levels.jsonl", [{**row, "level": at % 2} for at, row in enumerate(choices)])
    tasks = [
        {"name": "f1"},
        {"name": "multiple_choice", "data": {"path": str(place / "levels.jsonl"), "by": "level"}},
    ]
    data = {"evaluation": [{"path": str(place / "topics.jsonl")}]}
    outcome = made(place, {"tasks": tasks, "data": data, "by": "topic"}, name="by")
    by_topic, by_level = outcome.results["strata"]
    assert [(one["value"], one["rows"]) for one in by_topic["values"]] == [
        ("math", 3), ("names", 1), ("(none)", 1),
    ]  # fmt: skip
    answers = [json.loads(line) for line in outcome.folder.read_text("answers.jsonl").splitlines()]
    for model in ("tiny", "base"):
        expected = mean(answers[at]["models"][model]["f1"] for at in (0, 2, 3))
        assert by_topic["values"][0]["figures"][0]["models"][model]["value"] == pytest.approx(expected)
    assert [(one["value"], one["rows"]) for one in by_level["values"]] == [("0", 3), ("1", 2)]
    assert [one["figure"] for one in by_level["values"][0]["figures"]] == ["accuracy", "accuracy_norm"]
    with pytest.raises(
        DataError, match=r"by: no row has a column topik; the rows have prompt, response, topic"
    ):
        made(place, {"tasks": tasks, "data": data, "by": "topik"}, name="by")
    held_out = made(place, {"tasks": tasks[:1], "by": "messages", "limit": 3, "compare": "none"}, name="own")
    assert {one["rows"] for one in held_out.results["strata"][0]["values"]} == {1}, "rows of data.train"


def test_samples_and_a_function_of_the_user(place: Path) -> None:
    """The first of three samples is the one of a single sample. Figures are recomputed from the written answers."""
    (place / "my.py").write_text(
        "def length(answer, reference, row):\n    return len(answer) + len(row['messages'])\n"
    )
    tasks = [
        {"name": "exact_match"},
        {"name": "extracted_answer"},
        {"name": "metric", "function": f"{place / 'my.py'}:length"},
    ]
    decoding = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "samples": 3}
    values = {"tasks": tasks, "limit": 4, "compare": "none"}
    outcome = made(place, {**values, "decoding": decoding}, name="samples")
    rows = [json.loads(line) for line in outcome.folder.read_text("answers.jsonl").splitlines()]
    answers = [row["models"]["tiny"]["samples"] for row in rows]
    assert all(len(own) == 3 for own in answers)
    assert len({text for own in answers for text in own}) > 4, "the control: samples differ"
    assert value(outcome, "metric/length") == pytest.approx(
        mean(len(text) + 2 for own in answers for text in own)
    )
    right = [
        [text.strip() == row["reference"].strip() for text in own]
        for own, row in zip(answers, rows, strict=True)
    ]
    assert value(outcome, "exact_match") == pytest.approx(mean(mean(own) for own in right))
    assert value(outcome, "exact_match/pass@3") == mean(any(own) for own in right)
    assert outcome.results["metric"]["models"]["tiny"]["errors"] == 0
    one = made(place, {**values, "tasks": tasks[:1], "decoding": {**decoding, "samples": 1}}, name="sample")
    single = [json.loads(line) for line in one.folder.read_text("answers.jsonl").splitlines()]
    assert [row["models"]["tiny"]["answer"] for row in single] == [own[0] for own in answers]


def test_forgetting_is_the_change_of_general_texts(place: Path) -> None:
    """The losses equal a hand-written loop. (A tiny random base has nothing to forget: tuning makes it better.)"""
    values = {"tasks": [{"name": "forgetting", "max_length": 40}], "fail_if": {"general_loss": "< base"}}
    outcome = made(place, values, name="forgetting")
    assert outcome.results["failed"][0].startswith("general_loss is ")
    (loss, _) = outcome.results["figures"]
    assert loss["rows"] == len(built_in()) == 40
    assert loss["differences"]["base"]["p"] < 0.01
    loaded = load_run(str(place / "runs/tiny"))
    total = tokens = 0.0
    for text in built_in():
        ids = loaded.tokenizer.encode_prompt(text)[:40]
        with torch.no_grad():
            chances = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(chances[at - 1, ids[at]]) for at in range(1, len(ids)))
        tokens += len(ids) - 1
    assert value(outcome, "general_loss") == pytest.approx(total / tokens, rel=1e-5)
    assert value(outcome, "general_perplexity") == pytest.approx(math.exp(total / tokens), rel=1e-5)
    own = write_rows(place / "general.jsonl", [{"text": built_in()[0]}, {"text": built_in()[1]}])
    task = {"name": "forgetting", "max_length": 40, "data": {"path": str(own)}}
    two = made(place, {"tasks": [task], "compare": "none"}, name="general")
    rows = [
        json.loads(line)["models"]["tiny"] for line in outcome.folder.read_text("general.jsonl").splitlines()
    ]
    expected = sum(row["loss"] for row in rows[:2]) / sum(row["tokens"] for row in rows[:2])
    assert value(two, "general_loss") == pytest.approx(expected, rel=1e-6)
    assert value(two, "general_loss") != pytest.approx(value(outcome, "general_loss"), rel=1e-4), (
        "the control"
    )
