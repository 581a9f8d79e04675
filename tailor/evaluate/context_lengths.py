"""What results by context length say: intervals of the cells of a grid, and the effective length of each model.

The effective length is the longest evaluated length whose score is at least a threshold, beside the claimed length, the
model's number of positions (RULER, arXiv 2404.06654).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any

from tailor.evaluate.figures import wilson


def with_intervals(grid: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """A grid with `intervals`: for each model [length][depth] -> Wilson's interval over the prompts of the cell."""
    intervals = {
        model: [
            [wilson(share, count, confidence) for share, count in zip(row, counts, strict=True)]
            for row, counts in zip(shares, grid["prompts"], strict=True)
        ]
        for model, shares in grid["models"].items()
    }
    return {**grid, "intervals": intervals}


def with_mean(by_length: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """The scores by length with the mean over `tasks`, as RULER has it, if several have the same lengths and threshold."""
    chosen = [by_length[task] for task in tasks]
    kinds = {(tuple(one["lengths"]), one["threshold"]) for one in chosen}
    if len(chosen) < 2 or len(kinds) > 1:
        return dict(by_length)
    scores = {
        model: [fmean(own) for own in zip(*(one["scores"][model] for one in chosen), strict=True)]
        for model in chosen[0]["scores"]
    }
    return {**by_length, f"mean of {len(chosen)} tasks": {**chosen[0], "scores": scores}}


def effective(by_length: Mapping[str, Any], claimed: Mapping[str, int | None]) -> dict[str, Any]:
    """The effective length of each model. by_length: `threshold`, `lengths` and each model's `scores`.

    claimed: the positions of each model; None if its config.json has no limit. A length of None: no length has such a score.
    """
    threshold, lengths = by_length["threshold"], by_length["lengths"]
    models = {}
    for model, scores in by_length["scores"].items():
        reached = [length for length, score in zip(lengths, scores, strict=True) if score >= threshold]
        models[model] = {"claimed": claimed[model], "effective": max(reached, default=None)}
    return {**by_length, "longest": max(lengths), "models": models}
