"""The splits that the files of a folder or glob say, as the Hugging Face hub names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from tailor.errors import DataError

ALL = "all"
"""The value of `split` that takes every file."""

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_METADATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|croissant|config|metadata|package|tokenizer(_config)?)\.json"
    r"|(readme|licen[cs]e|requirements|copying|notice|authors|changelog)(\.(md|txt|text|rst|html))?",
    re.IGNORECASE,
)


def is_metadata(path: str) -> bool:
    """Whether a file of a folder describes the rows and holds none, as those of a snapshot of the hub."""
    return _METADATA.fullmatch(PurePosixPath(path).name) is not None


def file_split(below: str) -> str | None:
    """What a file says by its path below the source's folder: by the name of a folder, else by its own.

    A word counts where no letters are beside it: `test-00000.parquet`, but not `latest.jsonl`.
    """
    *folders, name = PurePosixPath(below).parts
    for folder in folders:
        if (split := _SPLIT_OF.get(folder.lower())) is not None:
            return split
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_OF]
    return _SPLIT_OF[words[0]] if words else None


def of_split(paths: Mapping[str, str], asked: str | None, where: str) -> list[str]:
    """The files of the split that the recipe asks for. `paths`: file -> its path below the source's folder.

    DataError when files say several splits and the recipe none, or when no file says the one of the recipe.
    """
    if asked == ALL:
        return sorted(paths)
    said = {path: file_split(below) for path, below in paths.items()}
    found = sorted({split or "no split" for split in said.values()})
    if asked is None:
        if len(found) > 1:
            raise DataError(
                f"{where}: its files are of several splits: {_counts(said)}",
                hint=f"choose one, as split: {'train' if 'train' in found else next(name for name in found if name != 'no split')}; split: all takes every file",
            )
        return sorted(paths)
    own = _SPLIT_OF.get(asked.lower(), asked.lower())
    if own not in _WORDS:  # such as train_sft of `train_sft-00000-of-00003.parquet`
        said = {path: _stem(below) for path, below in paths.items()}
    chosen = sorted(path for path, split in said.items() if split == own)
    if not chosen:
        raise DataError(
            f"{where}: no file of it says split {asked}: {_counts(said)}",
            hint="choose one of these, or leave split out" if found != ["no split"] else "leave split out",
        )
    return chosen


def _stem(below: str) -> str:
    """The name of a file without its suffixes and the number of its part."""
    return re.split(r"-\d+-of-\d+|\.", PurePosixPath(below).name.lower())[0]


def require_split(path: str, asked: str, where: str) -> None:
    """DataError when the recipe asks one file for a split that it does not say. `train` may be any file without one."""
    said = file_split(PurePosixPath(path).name)
    own = _SPLIT_OF.get(asked.lower(), asked.lower())
    said = said if own in _WORDS else _stem(path)
    if own not in (ALL, said) and not (own == "train" and said is None):
        raise DataError(
            f"{where}: is one file, which says {said or 'no split'}, and not split {asked}",
            hint="leave split out, or name the file of that split",
        )


def _counts(said: Mapping[str, str | None]) -> str:
    splits: Sequence[str] = [split or "no split" for split in said.values()]
    return ", ".join(f"{name} ({splits.count(name)})" for name in sorted(set(splits)))
