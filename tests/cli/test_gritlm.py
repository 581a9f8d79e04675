"""Rows as GritLM publishes them, through the command, to a model that embeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_run import tailor
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data:
  train: [{path: embedding.jsonl}, {path: generative.jsonl}]
  holdout: 0.2
  template: gritlm
  max_length: 128
  on_long: truncate
method: {name: gritlm, embedding_batch_size: 8, generative_batch_size: 4, projection: 16, matryoshka: [8]}
optim: {learning_rate: 0.005}
train: {steps: 3, precision: fp32}
save: {to: runs/grit}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base")
    instruction = "Represent this text:"
    pairs = [
        {
            "query": [instruction, f"Number {number}" + "!" * (200 if number == 3 else 0)],
            "pos": [[instruction, f"{number} is it."]],
            "neg": [[instruction, f"{number + other} is it."] for other in (1, 2)],
        }
        for number in range(40)
    ]
    talks = [{"text": [f"What is {number}?", "A number.", "Sure?", "Yes."]} for number in range(20)]
    for name, rows in (("embedding", pairs), ("generative", talks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_published_rows_become_a_model_that_embeds(place: Path) -> None:
    from tailor.artifacts.load_embedder import load_embedder

    code, out, err = tailor(place, "run", "recipe.yaml")
    assert (code, err) == (0, "")
    assert "embedding.jsonl" in out
    assert "40 rows, of which 1 truncated" in out
    run = place / "runs" / "grit"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    (evaluation,) = [record for record in records if record["kind"] == "evaluation"]
    for record in (*train, evaluation):
        parts = record["embedding_loss"] + record["generative_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
    assert {"embedding_accuracy", "token_accuracy", "perplexity"} <= set(evaluation)
    plan = json.loads((run / "plan.json").read_text())
    assert plan["chunk_tokens"] == 1024

    one = load_embedder(str(run))
    assert one.encode(["Number 1"], "Represent this text:").shape == (1, 16)
    short = load_embedder(str(run), dimension=8).encode(["Number 1"])
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)

    _, shown, _ = tailor(place, "show", "runs/grit")
    assert "8 queries with 2 passages each and 4 sequences for the next-token loss" in " ".join(shown.split())
    _, seen, _ = tailor(place, "data", "preview", "recipe.yaml")
    assert "pooled, 1 query, 1 positive, 2 negatives" in seen
