"""lm-eval's tasks through `tailor evaluate`, with definitions and rows of the test's own: no network.

lm-eval needs 320 MB, so it is not installed for development; `make test` reports that this file was skipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt -e '.[lm-eval]'"
)

from tailor.errors import DataError, TailorError
from tailor.onray.evaluate import Evaluated, evaluate
from tailor.spec.load import with_overrides
from tests.helpers.adapters import random_adapter
from tests.helpers.evaluations import Shown, write_rows
from tests.helpers.models import tiny_llama

COLOURS = """\
task: colors
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
SAID = """\
task: said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["x"], max_gen_toks: 4}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}, {{metric: bleu}}]
"""
READ = """\
task: read
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{choices[2]}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GROUP = """\
group: both
task: [colors, said]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
RULER = """\
task: {name}
dataset_path: ""
output_type: generate_until
test_split: test
custom_dataset: !function ruler_shape.{name}
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{outputs}}}}"
process_results: !function ruler_shape.process_results
metric_list:
  - {{metric: "4096", aggregation: !function ruler_shape.aggregate, higher_is_better: true}}
  - {{metric: "64", aggregation: !function ruler_shape.aggregate, higher_is_better: true}}
  - {{metric: "400", aggregation: !function ruler_shape.aggregate, higher_is_better: true}}
generation_kwargs: {{do_sample: false, max_gen_toks: 4, until: []}}
"""
RULER_GROUP = """\
group: ruler_shape
task: [first, second]
aggregate_metric_list: [{metric: "4096", weight_by_size: false}]
"""
RULER_CODE = '''\
"""Tasks of RULER's shape: data made with the tokenizer, one metric for each length, -1 for the other ones."""
import itertools
import random

import datasets
from transformers import AutoTokenizer

LETTERS = {"first": "etaoin", "second": "abcdefghijklmnopqrstuvwxyz"}


def rows(name, length, tokenizer):
    for at in range(6):
        text = "".join(random.choice("xyz ") for _ in range(length - 8))
        while len(tokenizer(text).input_ids) > length - 8:
            text = text[:-1]
        yield {"input": text, "outputs": list(LETTERS[name]), "max_length": length}


def made(name, max_seq_lengths=(4096,), tokenizer=None, **kwargs):
    assert tokenizer, "No tokenizer or pretrained provided."
    own = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=True)
    lists = (rows(name, length, own) for length in max_seq_lengths)
    return {"test": datasets.Dataset.from_list(list(itertools.chain.from_iterable(lists)))}


def first(**kwargs):
    return made("first", **kwargs)


def second(**kwargs):
    return made("second", **kwargs)


def process_results(doc, results):
    said = results[0].lower()
    score = sum(ref in said for ref in doc["outputs"]) / len(doc["outputs"])
    return {"4096": -1.0, str(doc["max_length"]): score}


def aggregate(values):
    found = [value for value in values if value != -1]
    return sum(found) / len(found) if found else -1
'''
UNEVEN = """\
group: uneven
task: [colors, few]
aggregate_metric_list: [{metric: acc, weight_by_size: false}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, questions with choices, and definitions of tasks with them."""
    folder = tmp_path_factory.mktemp("place")
    base = tiny_llama(folder / "base", max_position_embeddings=256)
    random_adapter(folder / "adapter", base, size=0.2)
    shutil.copytree(folder / "adapter", folder / "plain")  # as trained on texts
    config = folder / "plain" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["chat_template"]
    config.write_text(json.dumps(settings))
    rows = [
        {
            "question": f"{at}?",
            "choices": ["It is 0.", "It is 1.", "Something longer, say."],
            "answer": at % 2,
        }
        for at in range(5)
    ]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "tasks").mkdir()
    for name, text in (("colors", COLOURS), ("said", SAID), ("read", READ)):
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl"))
    (folder / "tasks" / "both.yaml").write_text(GROUP)
    for name in ("first", "second"):
        (folder / "tasks" / f"{name}.yaml").write_text(RULER.format(name=name))
    (folder / "tasks" / "ruler_shape.py").write_text(RULER_CODE)
    (folder / "tasks" / "ruler_shape.yaml").write_text(RULER_GROUP)
    write_rows(folder / "few.jsonl", rows[1:3])
    (folder / "tasks" / "few.yaml").write_text(
        COLOURS.replace("task: colors", "task: few\ntag: [small]").format(rows=folder / "few.jsonl")
    )
    (folder / "tasks" / "uneven.yaml").write_text(UNEVEN)
    return folder


@pytest.fixture(autouse=True)
def _away_from_the_network(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def made(
    place: Path,
    to: Path,
    *tasks: dict[str, Any],
    shown: Shown | None = None,
    model: str = "adapter",
    **values: Any,
) -> Evaluated:
    own = [{"include": str(place / "tasks"), **task} if task["name"] == "lm_eval" else task for task in tasks]
    suite = with_overrides({"tasks": own, **values}, "evaluation", ())
    return evaluate(str(place / model), suite, shown or Shown(), name="x", to=str(to))


def value(outcome: Evaluated, figure: str, model: str = "adapter") -> float:
    (found,) = (entry for entry in outcome.results["figures"] if entry["figure"] == figure)
    return float(found["models"][model]["value"])


def rows_of(outcome: Evaluated, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.folder.read_text(file).splitlines()]


def likelihoods(outcome: Evaluated, model: str) -> tuple[np.ndarray, np.ndarray]:
    """The log-likelihoods of lm-eval and of tailor for every choice, float64[rows, choices]."""
    theirs, ours = rows_of(outcome, "lm_eval.jsonl"), rows_of(outcome, "choices.jsonl")
    return (
        np.array([[answer[0] for answer in row["models"][model]["answers"]] for row in theirs]),
        np.array([row["models"][model]["loglikelihoods"] for row in ours]),
    )


def test_lm_eval_and_multiple_choice_agree(place: Path, tmp_path: Path) -> None:
    """Two programs, one model, the same questions: each is the other's reference."""
    choices = {"name": "multiple_choice", "data": {"path": str(place / "rows.jsonl")}}
    outcome = made(place, tmp_path / "x", choices, {"name": "lm_eval", "tasks": ["colors"]}, model="plain")
    for model in ("plain", "base"):
        assert value(outcome, "colors/acc", model) == value(outcome, "accuracy", model)
        assert value(outcome, "colors/acc_norm", model) == value(outcome, "accuracy_norm", model)
        theirs, ours = likelihoods(outcome, model)
        assert theirs == pytest.approx(ours, rel=1e-4)
    reported = outcome.results["lm_eval"]["tasks"]["colors"]["reported"]
    assert reported["plain"]["acc,none"] == value(outcome, "accuracy", "plain")
    assert not np.allclose(theirs, likelihoods(outcome, "plain")[0], rtol=1e-2), (
        "the control: the base is another"
    )


def test_through_the_chat_template(place: Path, tmp_path: Path) -> None:
    """lm-eval moves the white space at the end of a prompt to the answers: it adds the same value to all of them."""
    choices = {"name": "multiple_choice", "data": {"path": str(place / "rows.jsonl")}}
    task = {"name": "lm_eval", "tasks": ["colors"], "chat": True, "num_fewshot": 0}
    theirs, ours = likelihoods(made(place, tmp_path / "x", choices, task, compare="none"), "adapter")
    share = theirs - ours
    assert share == pytest.approx(np.repeat(share[:, :1], 3, axis=1), abs=1e-3)
    assert (share < -1).all()
    assert (theirs.argmax(1) == ours.argmax(1)).all()
    with pytest.raises(TailorError, match="plain has no chat template"):
        made(place, tmp_path / "y", task, compare="none", model="plain")
    examples = made(place, tmp_path / "z", {**task, "num_fewshot": 2, "limit": 1}, compare="none")
    (row,) = rows_of(examples, "lm_eval.jsonl")
    assert row["prompt"].count("<|im_start|>assistant") == 3


def test_every_kind_of_task_and_corpus_level_metrics(place: Path, tmp_path: Path) -> None:
    shown = Shown()
    task = {"name": "lm_eval", "tasks": ["both", "said", "read"], "limit": 3}
    values = {"compare": "none", "fail_if": {"both/acc": "< 2", "read/bits_per_byte": "< 0"}}
    outcome = made(place, tmp_path / "x", task, shown=shown, **values)
    entries = {entry["figure"]: entry for entry in outcome.results["figures"]}
    assert list(entries) == ["both/acc", "said/exact_match", "read/word_perplexity", "read/bits_per_byte"]
    assert [entries[name]["rows"] for name in entries] == [3, 3, 3, 3]
    assert entries["read/bits_per_byte"]["better"] == "lower"
    for name, key in (("both", "acc,none"), ("read", "word_perplexity,none"), ("read", "bits_per_byte,none")):
        reported = outcome.results["lm_eval"]["tasks"][name]["reported"]["adapter"][key]
        assert value(outcome, f"{name}/{key.split(',')[0]}") == pytest.approx(reported, rel=1e-6)
    assert [line for line in shown.lines if "said/bleu" in line], "reported, but not in the table"
    assert "bleu,none" in outcome.results["lm_eval"]["tasks"]["said"]["reported"]["adapter"]
    assert outcome.results["failed"] == [
        f"both/acc is {value(outcome, 'both/acc'):.4g}, and fail_if says < 2"
    ]
    assert {row["task"] for row in rows_of(outcome, "lm_eval.jsonl")} == {"colors", "said", "read"}


def test_tasks_that_make_data_for_each_length(place: Path, tmp_path: Path) -> None:
    """RULER's shape: the model's tokenizer and lengths in, figures by length and the effective length out."""
    shown = Shown()
    task = {
        "name": "lm_eval",
        "tasks": ["ruler_shape", "first"],
        "metadata": {"max_seq_lengths": [64, 400]},
        "limit": 3,
        "threshold": 0.001,
    }
    outcome = made(place, tmp_path / "x", task, shown=shown)
    entries = {entry["figure"]: entry for entry in outcome.results["figures"]}
    assert list(entries) == ["ruler_shape/64", "ruler_shape/400", "first/64", "first/400"]
    assert [entries[name]["rows"] for name in entries] == [6, 6, 3, 3], "the limit holds for each length"
    rows = rows_of(outcome, "lm_eval.jsonl")
    assert len(rows) == 18
    for length in (64, 400):
        own = [row["models"]["adapter"] for row in rows if str(length) in row["models"]["adapter"]]
        scores = [one[str(length)] for one in own]
        assert value(outcome, f"first/{length}") == pytest.approx(sum(scores[6:]) / 3)
        assert value(outcome, f"ruler_shape/{length}") == pytest.approx(sum(scores[:6]) / 6)
        assert sum(scores) > 0, "the control: a model that never says a letter would score 0 at every length"
    found = outcome.results["effective_lengths"]["ruler_shape"]
    assert found["models"] == {name: {"claimed": 256, "effective": 400} for name in ("adapter", "base")}
    assert not [line for line in shown.lines if "longer than the model's positions" in line]
    again = made(place, tmp_path / "again", task, compare="none")
    assert rows_of(again, "lm_eval.jsonl")[5]["prompt"] == rows[5]["prompt"], "drawn with lm-eval's seed"
    one = made(place, tmp_path / "one", {**task, "tasks": ["second"], "metadata": {"max_seq_lengths": [64]}})
    assert [entry["figure"] for entry in one.results["figures"]] == ["second/64"]


def test_a_group_is_the_mean_of_its_tasks_and_a_tag_is_none(place: Path, tmp_path: Path) -> None:
    outcome = made(place, tmp_path / "x", {"name": "lm_eval", "tasks": ["uneven", "colors", "few"]})
    mean = (value(outcome, "colors/acc") + value(outcome, "few/acc")) / 2
    assert value(outcome, "uneven/acc") == pytest.approx(mean)
    reported = outcome.results["lm_eval"]["tasks"]["uneven"]["reported"]["adapter"]["acc,none"]
    assert value(outcome, "uneven/acc") == pytest.approx(reported)
    with pytest.raises(
        DataError, match="small is a tag of tasks, which has no metrics of its own; name its tasks: few"
    ):
        made(place, tmp_path / "y", {"name": "lm_eval", "tasks": ["small"]})


def test_prompts_that_lm_eval_cuts_are_reported(place: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "why? " * (10 + 60 * at), "choices": ["a", "b", "c"], "answer": 0} for at in range(3)
    ]
    write_rows(place / "long.jsonl", rows)
    text = SAID.replace("task: said", "task: long").replace(", {metric: bleu}", "")
    (place / "tasks" / "long.yaml").write_text(text.format(rows=place / "long.jsonl"))
    shown = Shown()
    made(place, tmp_path / "x", {"name": "lm_eval", "tasks": ["long"]}, shown=shown, compare="none")
    assert shown.lines[-1] == (
        "lm_eval: 2 of 3 prompts of long are longer than the model's positions: lm-eval left out their start"
    )


def test_errors_are_reported(place: Path, tmp_path: Path) -> None:
    def refusal(**task: Any) -> str:
        with pytest.raises(TailorError) as caught:
            made(place, tmp_path / "x", {"name": "lm_eval", **task}, compare="none")
        return str(caught.value)

    assert refusal(tasks=["hellaswagg"]).startswith(
        "lm_eval: unknown task hellaswagg; did you mean hellaswag or "
    )
    (place / "tasks" / "lost.yaml").write_text(
        COLOURS.replace("task: colors", "task: lost").format(rows="no.jsonl")
    )
    assert refusal(tasks=["lost"]).startswith("lm_eval: the task lost cannot be loaded: Unable to find")
    (place / "tasks" / "zero.yaml").write_text(
        COLOURS.replace("task: colors", "task: zero").format(rows=place / "rows.jsonl") + "num_fewshot: 0\n"
    )
    assert refusal(tasks=["zero"], num_fewshot=2) == (
        "lm_eval: num_fewshot has no effect on zero, which is defined without few-shot examples; remove num_fewshot"
    )
    with pytest.raises(DataError) as caught:
        made(place, tmp_path / "y", {"name": "lm_eval", "tasks": ["colors"]}, fail_if={"colors/ac": "< 1"})
    assert str(caught.value) == (
        "fail_if: unknown figure colors/ac; the tasks report colors/acc, colors/acc_norm; "
        "correct it, and run the same command again: finished batches are reused"
    )
    shown = Shown()
    made(
        place,
        tmp_path / "y",
        {"name": "lm_eval", "tasks": ["colors"]},
        shown=shown,
        fail_if={"colors/acc": "< 0"},
    )
    assert shown.lines[0].startswith("resuming: 2 of 2 rows")
