"""The errors of evaluations and their messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tailor
from tailor.errors import DataError, GateError, ModelError, StoreError, TailorError
from tests.helpers.evaluations import made, make_recipe, value, write_rows
from tests.helpers.models import tiny_llama

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("gone", [True, False])
def test_an_adapter_without_its_base_is_an_error(tmp_path: Path, place: Path, gone: bool) -> None:
    run = tailor.load(make_recipe(tmp_path, steps=1)).run()
    base = tmp_path / "base"
    if gone:
        base.rename(tmp_path / "elsewhere")
    else:
        tiny_llama(base, hidden_size=128, max_position_embeddings=256)
    with pytest.raises(ModelError) as caught:
        made(place, {"tasks": [{"name": "perplexity"}], "limit": 3}, target=run.path)
    message = f"the adapter at {run.artifact} needs its base model {base}"
    if not gone:
        message = f"{base} is not the base of the adapter at {run.artifact}"
    assert message in str(caught.value)


def test_a_bound_raises_with_the_metric(place: Path) -> None:
    outcome = made(
        place, {"tasks": [{"name": "rouge"}], "fail_if": {"rougeL": "< 1.1"}, "limit": 3}, name="gate"
    )
    rouge = value(outcome, "rougeL")
    with pytest.raises(GateError) as caught:
        outcome.require()
    assert str(caught.value) == (
        f"gate: rougeL is {rouge:.4g}, and fail_if says < 1.1; see the metrics and answers in "
        f"{place}/runs/tiny/evaluation/gate"
    )
    assert caught.value.exit_code == 3
    made(place, {"tasks": [{"name": "rouge"}], "fail_if": {"rougeL": "< 0"}, "limit": 3}).require()


@pytest.mark.parametrize(
    ("values", "settings", "error", "text"),
    [
        ({}, {"target": "runs/tinny"}, ModelError, "runs/tinny does not exist"),
        (
            {},
            {"target": "base"},
            StoreError,
            "base is not a run folder, so there is no default folder for the results",
        ),
        (
            {},
            {"target": "base", "to": "new"},
            DataError,
            "base is not a run, so it has no evaluation rows",
        ),
        ({}, {"to": "runs"}, StoreError, "--to runs already exists, and is not an evaluation"),
        (
            {"tasks": [{"name": "facts", "data": {"path": "bad.jsonl"}}]},
            {},
            DataError,
            "bad.jsonl:2: the fact '!' has no letters or digits to look for",
        ),
        (
            {
                "tasks": [
                    {
                        "name": "multiple_choice",
                        "data": {"path": "choices.jsonl", "columns": {"answer": "key"}},
                    }
                ]
            },
            {},
            DataError,
            "choices.jsonl:1: missing key `key`; name the column in tasks[0].data.columns: {answer: …}",
        ),
    ],
)
def test_errors(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    settings: dict[str, Any],
    error: type[TailorError],
    text: str,
) -> None:
    monkeypatch.chdir(place)
    write_rows(place / "bad.jsonl", [{"question": "a", "facts": ["b"]}, {"question": "a", "facts": ["!"]}])
    with pytest.raises(error) as caught:
        made(place, values, **settings)
    assert text in str(caught.value).replace(f"{place}/", "")
