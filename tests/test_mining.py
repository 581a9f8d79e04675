"""Mining and training in turns makes a retriever better: the commands of docs/embeddings.md, on the notes of the quickstart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_run import start
from tests.helpers.collections import write_jsonl

FOLDER = Path(__file__).parents[1] / "recipes" / "quickstart"
INSTRUCTION = "Find the note about this order"
RECIPE = """\
model: {{path: {base}, adapter: {{rank: 16, alpha: 32}}{start}}}
data: {{train: [{{path: {rows}.jsonl}}], template: gritlm, max_length: 128}}
method: {{name: gritlm, mode: embedding, embedding_batch_size: 24, group_size: 4}}
optim: {{learning_rate: 5e-3, warmup_ratio: 0.1}}
train: {{steps: 25, precision: fp32}}
save: {{to: runs/{name}}}
evaluate:
  every: 25
  retrieval: {{data: {{path: held-out}}, query_instruction: {instruction}}}
"""


def make_data(folder: Path) -> None:
    """pairs.jsonl: queries and relevant notes. held-out/: other queries, and all notes, in BEIR's layout."""
    rows = {
        name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "pairs-evaluation")
    }
    both = [*rows["pairs"], *rows["pairs-evaluation"]]
    notes = dict.fromkeys(text for row in both for _, text in (*row["pos"], *row["neg"]))
    ids = {text: f"n{number}" for number, text in enumerate(notes)}
    (folder / "held-out" / "qrels").mkdir(parents=True)
    write_jsonl(folder / "pairs.jsonl", [{"query": row["query"], "pos": row["pos"]} for row in rows["pairs"]])
    write_jsonl(folder / "held-out" / "corpus.jsonl", [{"_id": at, "text": text} for text, at in ids.items()])
    asked = [{"_id": f"q{at}", "text": row["query"][1]} for at, row in enumerate(rows["pairs-evaluation"])]
    write_jsonl(folder / "held-out" / "queries.jsonl", asked)
    judged = [
        f"q{at}\t{ids[text]}\t1" for at, row in enumerate(rows["pairs-evaluation"]) for _, text in row["pos"]
    ]
    (folder / "held-out" / "qrels" / "test.tsv").write_text(
        "\n".join(["query-id\tcorpus-id\tscore", *judged])
    )


def tailor(folder: Path, *words: str) -> None:
    process = start(folder, *words)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def train(folder: Path, name: str, rows: str, after: str = "") -> list[float]:
    """NDCG@10 of the held-out queries before and after a run."""
    warm = f", warm_start: runs/{after}" if after else ""
    recipe = RECIPE.format(base=FOLDER / "base", rows=rows, name=name, start=warm, instruction=INSTRUCTION)
    (folder / f"{name}.yaml").write_text(recipe)
    tailor(folder, "run", f"{name}.yaml")
    records = map(json.loads, (folder / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [record["ndcg@10"] for record in records if record["kind"] == "retrieval"]


def mine(folder: Path, retriever: str, to: str, *options: str) -> None:
    words = ["mine", retriever, "pairs.jsonl", f"{to}.jsonl", "--corpus", "held-out/corpus.jsonl", *options]
    tailor(folder, *words)


def shuffle(folder: Path, rows: str, to: str) -> None:
    """The rows, each with the relevant notes of the row before it."""
    read = [json.loads(line) for line in (folder / f"{rows}.jsonl").read_text().splitlines()]
    moved = [{**row, "pos": read[at - 1]["pos"]} for at, row in enumerate(read)]
    write_jsonl(folder / f"{to}.jsonl", moved)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_each_round_of_mining_and_training_raises_ndcg(tmp_path: Path) -> None:
    """The control: rows that call the notes of other queries relevant teach nothing."""
    make_data(tmp_path)
    mine(tmp_path, "random", "rows-1")
    before, first = train(tmp_path, "first", "rows-1")
    mine(tmp_path, "runs/first", "rows-2", "--relative-margin", "0")
    start, second = train(tmp_path, "second", "rows-2", after="first")
    assert start == pytest.approx(first, abs=1e-6)
    shuffle(tmp_path, "rows-1", "rows-c")
    chance, control = train(tmp_path, "control", "rows-c")
    assert before + 0.05 < first
    assert first + 0.05 < second
    assert chance == before
    assert control < before + 0.05
    print(f"NDCG@10: {before:.3f}, {first:.3f}, {second:.3f}; with the notes of other queries {control:.3f}")
