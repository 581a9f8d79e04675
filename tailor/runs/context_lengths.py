"""The effective context lengths in results.json, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from tailor.store.json_files import Count, Number


class _OfModel(TypedDict):
    claimed: Count | None
    effective: Count | None


class EffectiveLength(TypedDict):
    """The effective lengths of the models in one task. longest: the longest evaluated length."""

    threshold: Number
    longest: Count
    models: dict[str, _OfModel]


def lines(effective: dict[str, EffectiveLength]) -> Iterator[str]:
    """One line per task and model: the claimed and the effective length."""
    for task, one in effective.items():
        for model, lengths in one["models"].items():
            claimed = "unknown" if lengths["claimed"] is None else f"{lengths['claimed']:,}"
            found = lengths["effective"]
            if found is None:
                reached = f"none of the lengths up to {one['longest']:,}"
            else:
                reached = f"{found:,}" + " (the longest evaluated)" * (found == one["longest"])
            yield (
                f"{task}: {model}: claimed {claimed} tokens, effective {reached} "
                f"(score of at least {100 * one['threshold']:g} %)"
            )
