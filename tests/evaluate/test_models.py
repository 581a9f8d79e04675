"""The models of an evaluation and their labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tailor.errors import ModelError
from tailor.evaluate.models import EvaluatedModel, evaluated_models, find_model
from tailor.spec.suite import Suite
from tests.helpers.models import byte_tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("runs/tiny", "runs/base", "models/base", "models/tiny"):
        byte_tokenizer(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (tmp_path / name / "generation_config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    return tmp_path


def model(folders: Path, name: str) -> EvaluatedModel:
    """A full model of a run, whose base is models/base."""
    return replace(find_model(str(folders / name)), plan={"model": {"path": str(folders / "models/base")}})


@pytest.mark.parametrize(
    ("main", "compare", "labels"),
    [
        ("runs/tiny", "base", ["tiny", "base"]),
        ("runs/tiny", ["models/base"], ["tiny", "base"]),
        ("runs/tiny", ["base", "runs/base"], ["tiny", "base", "=runs/base"]),
        ("runs/tiny", ["runs/base", "base"], ["tiny", "=runs/base", "base"]),
        ("runs/tiny", ["runs/base", "models/base"], ["tiny", "base", "=models/base"]),
        ("runs/tiny", ["models/tiny"], ["tiny", "=models/tiny"]),
        ("runs/base", "base", ["=runs/base", "base"]),
        ("runs/base", ["runs/tiny"], ["base", "tiny"]),
    ],
)
def test_a_folder_with_the_name_of_a_keyword_is_labeled_by_its_path(
    folders: Path, main: str, compare: str | list[str], labels: list[str]
) -> None:
    given = (
        compare if compare == "base" else [one if one == "base" else str(folders / one) for one in compare]
    )
    found = evaluated_models(model(folders, main), Suite(compare=given))
    urls = [find_model(str(folders / label[1:])).ref.url if label[0] == "=" else label for label in labels]
    assert [one.ref.label for one in found] == urls
    keyword = [one for one in found if one.ref.label == "base" and "base" in (compare, *compare)]
    assert all(one.ref.url == str(folders / "models/base") for one in keyword)


def test_a_model_is_compared_once(folders: Path) -> None:
    for compare in (["runs/tiny"], ["runs/base", "runs/base"]):
        with pytest.raises(ModelError, match="is listed twice, or is the evaluated model itself"):
            evaluated_models(
                model(folders, "runs/tiny"), Suite(compare=[str(folders / one) for one in compare])
            )
