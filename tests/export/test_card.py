"""Metadata of the model card."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id

from tailor.export.card import dataset_ids


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
