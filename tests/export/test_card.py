"""Metadata of the model card."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id

from tailor.export.card import _measured, dataset_ids, front_matter
from tailor.store import Store


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("hf://owner/data", ["owner/data"]),
        ("hf://owner/data@main", ["owner/data"]),
        ("hf://owner/data/part/train.jsonl", ["owner/data"]),
        ("hf://owner/data@refs%2Fpr%2F1/train.jsonl", ["owner/data"]),
        ("hf://datasets/owner/data", ["owner/data"]),
        ("hf://squad", ["squad"]),
        ("hf://", []),
        ("hf://owner/da ta", []),
        ("/home/me/data.jsonl", []),
        ("s3://bucket/data.jsonl", []),
    ],
)
def test_ids_of_datasets_are_those_of_the_hub(path: str, ids: list[str]) -> None:
    assert dataset_ids([path, path]) == ids
    for one in ids:
        validate_repo_id(one)


def test_the_metadata_have_the_retrieval_metrics(tmp_path: Path) -> None:
    """Those of the exported step; or of the evaluation at the end, if the artifact is exported."""
    run = Store(str(tmp_path))
    records = [
        {"kind": "evaluation", "step": step, "loss": 2.0, "embedding_accuracy": 0.5} for step in (2, 4)
    ] + [{"kind": "retrieval", "step": step, "ndcg@10": step / 10, "queries": 3} for step in (0, 2, 4)]
    plan = {"model": {"path": str(tmp_path)}, "method": {"name": "gritlm"}}

    def metrics(step: int | None) -> dict[str, float]:
        measured = _measured(run, records, plan, step)
        head = front_matter(plan, {}, measured, "model", base=None, name="n")
        _, searched = head["model-index"][0]["results"]
        assert searched["task"]["type"] == "information-retrieval"
        return {one["type"]: one["value"] for one in searched["metrics"]}

    assert metrics(2) == {"ndcg_at_10": 0.2}
    assert metrics(None) == {"ndcg_at_10": 0.4}
    figure = {"better": "higher", "differences": {}, "rows": 3}
    estimate = {"run": {"value": 0.75, "interval": [0, 1]}, "base": {"value": 0.1, "interval": [0, 1]}}
    for name, expected in (("accuracy", 0.4), ("ndcg@10", 0.75)):
        entry = {"figure": name, "models": estimate, **figure}
        run.write_json(
            "evaluation/final/results.json",
            {"models": {"run": {}}, "figures": [entry], "failed": [], "intervals": ""},
        )
        run.write_bytes("evaluation/final/COMMIT", b"")
        assert metrics(None) == {"ndcg_at_10": expected}
    assert metrics(2) == {"ndcg_at_10": 0.2}, "it is that of the artifact"
