"""A preference run through the command, from a file in ShareGPT's form to a model that answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.cli.test_run import tailor
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data: {train: [{path: rows.json}], holdout: 0.2, max_length: 200, on_long: truncate}
method: {name: dpo, max_prompt_length: 150}
optim: {learning_rate: 0.005}
train: {steps: 8, batch_size: 2, precision: fp32}
evaluate: {every: 4, generation: {limit: 3, max_new_tokens: 4}}
save: {to: runs/dpo, every: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base")
    toss = random.Random(0)

    def words(letters: str) -> str:
        return "".join(toss.choices(letters, k=toss.randint(5, 30)))

    rows = [
        {
            "conversations": [
                {"from": "system", "value": "Answer."},
                {"from": "human", "value": f"{number}? " + "x" * (300 if number == 7 else 9)},
            ],
            "chosen": {"from": "gpt", "value": words("abcdef")},
            "rejected": {"from": "gpt", "value": words("STUVWX")},
        }
        for number in range(60)
    ]
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_a_pair_file_becomes_a_model_that_answers(place: Path) -> None:
    code, out, err = tailor(place, "run", "recipe.yaml")
    assert (code, err) == (0, "")
    assert "rows.json: 60 rows, of which 1 truncated" in out
    assert "step 8: evaluation loss 0." in out
    assert "reward accuracy" in out
    run = place / "runs" / "dpo"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [record for record in records if record["kind"] == "train"]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # the model is its own reference
    assert last["loss"] < 0.5
    assert last["reward_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"])
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert evaluations[-1]["reward_accuracy"] > 0.9
    assert (run / "reward_accuracy.png").is_file()
    answers = [json.loads(line) for line in (run / "evaluation" / "after.jsonl").read_text().splitlines()]
    assert all(set(answer["reference"]) <= set("abcdef") for answer in answers)  # the chosen ones only

    _, shown, _ = tailor(place, "show", "runs/dpo")
    assert "dpo with the sigmoid loss, LoRA of rank 4" in shown
    assert "Reward accuracy" in shown
    code, answer, _ = tailor(place, "generate", "runs/dpo", "--prompt", "Which?", "--max-new-tokens", "3")
    assert code == 0
    assert answer.strip()


def test_plan_and_data_report(place: Path) -> None:
    code, out, err = tailor(place, "plan", "recipe.yaml", "model.adapter=null", "save.to=runs/full")
    assert (code, err) == (0, "")
    assert "reference     a frozen copy of the model" in out
    assert ", reference 0.00" in out
    code, out, _ = tailor(place, "data", "report", "recipe.yaml")
    assert code == 0
    assert "preference_sharegpt (detected)" in out
    assert "1 rows, 0 supervised tokens cut, " in out
    assert " prompt tokens cut" in out
    code, _, err = tailor(place, "run", "recipe.yaml", "method={name: sft}", "save.to=runs/sft")
    assert code == 2
    assert (
        "preference data (columns chosen and rejected), which method sft does not read\n  hint: set method.name: dpo"
        in err
    )
