"""Conversions of the alignment handbook's mixtures of datasets."""

from __future__ import annotations

from typing import Any

from tailor.spec.moving.draft import Argument, Draft, as_list, mapping, number
from tailor.spec.moving.sources import EVALUATION, TRAIN, add, hub_path, sliced
from tailor.spec.trainers.rows import Verdict, no, skip

_SHARE = "a share of a dataset is a weight: each epoch shows as many of its rows"


def mixer(draft: Draft, argument: Argument) -> Verdict | str | None:
    """`dataset_mixer: {name: share}` with `dataset_splits`: those with `train` are trained, those with `test` evaluated."""
    splits = as_list(draft.given("dataset_splits")) or ["train", "test"]
    shares = mapping(argument.value)
    if not shares:
        return no("a mapping of datasets to their shares; write data.train")
    subsets = as_list(draft.given("dataset_configs"))
    for word, key in (("train", TRAIN), ("test", EVALUATION)):
        found = []
        for at, (name, share) in enumerate(shares.items()):
            subset = subsets[at] if at < len(subsets) else None
            for split in (one for one in splits if word in one):
                weight = share if key == TRAIN else 1
                found.append(_source(draft, str(name), subset, split, weight))
        if found and (key == TRAIN or draft.given("dataset_splits")):
            add(draft, key, found, argument)
    return _SHARE if any(number(share) != 1 for share in shares.values()) else None


def mixture(draft: Draft, argument: Argument) -> Verdict | str | None:
    """`dataset_mixture: {datasets: [{id, config, split, columns, weight}]}`."""
    entries = [
        mapping(one) for one in mapping(argument.value).get("datasets") or [] if mapping(one).get("id")
    ]
    if not entries:
        return skip("empty")
    found = [
        _source(
            draft, str(one["id"]), one.get("config"), str(one.get("split") or "train"), one.get("weight", 1)
        )
        for one in entries
    ]
    add(draft, TRAIN, found, argument)
    share = number(mapping(argument.value).get("test_split_size"))
    if share and share < 1:
        draft.put("data.holdout", float(share), argument)
    return _SHARE if any("weight" in one for one in found) else None


def _source(draft: Draft, name: str, subset: Any, split: str, weight: Any) -> dict[str, Any]:
    source: dict[str, Any] = {"path": hub_path(draft, name)}
    if subset:
        source["subset"] = str(subset)
    sliced(source, split)
    if number(weight) not in (None, 1):
        source["weight"] = number(weight)
    return source
