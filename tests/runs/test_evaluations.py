"""The tables of evaluations: metrics of an earlier definition are marked, because their values cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.runs import evaluations
from tailor.spec.tasks.lengths import LongPerplexity


def results(**more: Any) -> dict[str, Any]:
    estimate = {"value": 12.0, "interval": [11.0, 13.0]}
    names = ("perplexity", "perplexity_64", "lambada/perplexity")
    entries = [
        {"figure": name, "better": "lower", "models": {"m": estimate}, "differences": {}, "rows": 3}
        for name in names
    ]
    return {"models": {"m": {}}, "figures": entries, "failed": [], **more}


@pytest.mark.parametrize(
    ("more", "marked"),
    [
        ({"positions": {"ends": [1]}}, True),
        ({"positions": {"ends": [1]}, "definitions": {"long_perplexity": 1}}, True),
        ({"positions": {"ends": [1]}, "definitions": {"long_perplexity": LongPerplexity.definition}}, False),
        ({"positions": {}}, False),  # another package's task
    ],
)
def test_an_earlier_long_perplexity_is_marked(more: dict[str, Any], marked: bool) -> None:
    found = results(**more)
    name = "perplexity_64" + " (earlier definition)" * marked
    assert [row[0] for row in evaluations.table(found)[1]] == ["perplexity", name, "lambada/perplexity"]
    assert f"{name} 12" in evaluations.one_line(found)
