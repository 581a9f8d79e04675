"""Faults that are planted among clean rows are found, at their rows; clean rows have no finding."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tailor.encode import sources
from tailor.encode.doctor.examine import Diagnosis, examine
from tailor.encode.formats import get_format
from tailor.encode.tasks import split_of
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer
from tests.helpers.preparation import write
from tests.helpers.sentences import chat, clean_rows, sentence

GERMAN = (
    "Der alte Schneider misst das Tuch und die Knöpfe mit der Hand, aber er ist nicht mit dem Kragen zufrieden, und auch "
    "das Futter wird von ihm am Abend auf dem Tisch geprüft."
)
RUSSIAN = (
    "Старый портной измеряет ткань и пуговицы, но воротник ему не нравится, и вечером он проверяет подкладку."
)


def one_word_changed(row: dict[str, Any]) -> dict[str, Any]:
    other = copy.deepcopy(row)
    words = other["messages"][1]["content"].split()
    words[len(words) // 2] = "zipper"
    other["messages"][1]["content"] = " ".join(words)
    return other


def plant(rows: list[dict[str, Any]]) -> tuple[dict[str, int], list[dict[str, Any]], list[dict[str, Any]]]:
    """Plant one fault per kind. Returns check -> row number, evaluation rows and benchmark rows."""
    draw = random.Random(7)
    evaluation, benchmark = clean_rows(60, seed=1), [{"question": sentence(draw), "id": n} for n in range(60)]

    question = "Is this true? " + sentence(draw)
    answer = rows[3]["messages"][1]["content"]
    faults: dict[str, dict[str, Any]] = {
        "duplicates": rows[17],
        "near_duplicates": one_word_changed(rows[29]),
        "leakage": evaluation[5],
        "near_leakage": one_word_changed(evaluation[9]),
        "benchmark_leakage": chat(f"Answer this: {benchmark[33]['question']} Well?", "No. " + sentence(draw)),
        "evaluation_overlap": chat(evaluation[12]["messages"][0]["content"], "No. " + sentence(draw)),
        "empty_answers": chat(question, " "),
        "truncated_answers": chat(question + " Hm?", sentence(draw)[:-1] + " and the"),
        "unfinished_sentences": chat(question + " Or not?", f"{sentence(draw)} {sentence(draw)[:-20]}"),
        "mojibake": chat(question + " CafÃ©?", "It isnâ€™t. " + sentence(draw)),
        "replacement_characters": chat(question + " And this?", "The caf\ufffd. " + sentence(draw)),
        "control_characters": chat(question + " \x1b[31mred", "\u202eYes. " + sentence(draw)),
        "mixed_scripts": chat(question + " So?", "The tаilоr says so. " + sentence(draw)),
        "language_outliers": chat(
            "Stimmt das? " + GERMAN, "Ja. " + GERMAN[::-1][:0] + GERMAN + " Und die Naht auch."
        ),
        "script_outliers": chat("Это правда? " + RUSSIAN, "Да. " + RUSSIAN),
        "turn_order": {
            "messages": [
                {"role": "user", "content": question + " One."},
                *chat("Two? " + sentence(draw), answer[5:] + " Three.")["messages"],
            ]
        },
        "length_outliers": chat(question + " All?", " ".join(sentence(draw) for _ in range(40))),
        "unsupervised": chat(question + " None?", "No. " + sentence(draw), weight=0),
        "control_text": chat(question + " Done?", "It is.<|im_end|>\nBye. " + sentence(draw)),
        "html_entities": chat(question + " Quoted?", "&quot;Yes&quot;. " + sentence(draw)),
    }
    numbers = {}
    for at, (check, row) in enumerate(faults.items()):
        index = 60 + 19 * at
        rows[index] = row
        numbers[check] = index + 1
    return numbers, evaluation, benchmark


class Planted:
    def __init__(self, folder: Path, count: int) -> None:
        rows = clean_rows(count)
        self.numbers, evaluation, benchmark = plant(rows)
        self.model = str(byte_tokenizer(folder / "model"))
        self.train = write(folder / "train.jsonl", rows)
        self.evaluation = write(folder / "evaluation.jsonl", evaluation)
        self.benchmark = write(folder / "benchmark.jsonl", benchmark)

    def examine(self, **keys: Any) -> Diagnosis:
        data = {
            "train": [{"path": self.train}],
            "evaluation": [{"path": self.evaluation}],
            "max_length": 8192,
            **keys,
        }
        benchmarks = Data(
            train=[{"path": self.train}], decontaminate=[{"path": self.benchmark}]
        ).decontaminate
        return examine(Data(**data), Model(path=self.model), Sft(name="sft"), benchmarks=benchmarks)


def rows_of(diagnosis: Diagnosis, check: str) -> set[str]:
    return {Path(name).name for one in diagnosis.findings if one.check == check for name, _ in one.rows}


@pytest.mark.parametrize("count", [3_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_each_planted_fault_is_found_and_nothing_else(tmp_path: Path, count: int) -> None:
    planted = Planted(tmp_path, count)
    diagnosis = planted.examine()
    assert diagnosis.rows == count + 60
    expected = {check: {f"train.jsonl:{number}"} for check, number in planted.numbers.items()}
    expected |= {"leakage": {"evaluation.jsonl:6"}, "near_leakage": {"evaluation.jsonl:10"}}
    overlap = ("leakage", "near_leakage", "evaluation_overlap")
    expected["evaluation_overlap"] = {f"train.jsonl:{planted.numbers[check]}" for check in overlap}
    assert len(expected) >= 15
    assert {check: rows_of(diagnosis, check) for check in expected} == expected
    assert {finding.check for finding in diagnosis.findings} == set(expected)
    assert {one.check for one in diagnosis.findings if one.severity == "error"} == {
        "leakage",
        "benchmark_leakage",
    }


def test_control_clean_rows_have_no_finding(tmp_path: Path) -> None:
    model = str(byte_tokenizer(tmp_path / "model"))
    path = write(tmp_path / "rows.jsonl", clean_rows(300, seed=3))
    data = Data(train=[{"path": path}], max_length=8192)
    assert examine(data, Model(path=model), Sft(name="sft")).findings == ()


def test_tasks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same findings, rows and details for 1, 2 and 8 tasks."""
    small = Planted(tmp_path, 500)
    found = []
    size = Path(small.train).stat().st_size
    for tasks in (1, 2, 8):
        monkeypatch.setattr(sources, "PART_BYTES", -(-size // tasks))
        found.append(small.examine().as_dict())
    assert len({json.dumps(one) for one in found}) == 1
    assert {"duplicates", "near_duplicates", "leakage", "benchmark_leakage"} <= {
        one["check"] for one in found[0]["findings"]
    }


def test_near_duplicates_across_a_holdout(tmp_path: Path) -> None:
    """A pair within the training rows is a duplicate, a pair across the holdout a leak."""
    rows = clean_rows(60)
    rows += [one_word_changed(row) for row in rows[:30]]
    fmt = get_format("messages")
    splits = [split_of("train", 0.5, fmt.record(row, {})) for row in rows]
    pairs = [(splits[at], splits[60 + at]) for at in range(30)]
    model = str(byte_tokenizer(tmp_path / "model"))
    data = Data(train=[{"path": write(tmp_path / "rows.jsonl", rows)}], holdout=0.5, max_length=8192)
    diagnosis = examine(data, Model(path=model), Sft(name="sft"))
    counts = {one.check: one.count for one in diagnosis.findings}
    across = sum(len(set(pair)) == 2 for pair in pairs)
    assert counts == {"near_duplicates": pairs.count(("train", "train")), "near_leakage": across}
    assert min(counts.values()) > 2


def test_what_the_recipe_removes_is_a_note(tmp_path: Path) -> None:
    small = Planted(tmp_path, 500)
    diagnosis = small.examine(deduplicate="near", decontaminate=[{"path": small.benchmark}])
    found = [(one.check, one.severity, one.fix) for one in diagnosis.findings]
    for check in ("duplicates", "near_duplicates", "benchmark_leakage"):
        assert (check, "info", "") in found
    assert [check for check, severity, _ in found if severity == "error"] == ["leakage", "benchmark_leakage"]
    # The benchmark of the command is another list than the recipe's.
    assert (
        "benchmark_leakage",
        "error",
        f'data:\n  decontaminate: [{{path: "{small.benchmark}"}}, {{path: "{small.benchmark}"}}]',
    ) in found
