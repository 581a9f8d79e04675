"""What a recipe needs of this machine, read from its keys: folders, stores and repositories of the hub."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from tailor.layout import TOKENS
from tailor.spec.recipe import Recipe
from tailor.spec.rules.files import is_hub_id

HUB = "hf://"


def written(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, URL or path) of the folders that the run writes."""
    yield "save.to", recipe.save.to
    tokens = recipe.data.store or posixpath.join(posixpath.dirname(recipe.save.to.rstrip("/")), TOKENS)
    yield "data.store", tokens


def read(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, URL or path) of the data that the run reads."""
    for section, sources in (("train", recipe.data.train), ("evaluation", recipe.data.evaluation)):
        for at, source in enumerate(sources):
            yield f"data.{section}.{at}.path", source.path


def repositories(recipe: Recipe) -> dict[tuple[str, str], str]:
    """(`model` or `dataset`, id) of the repositories on the hub -> the first key that names it."""
    found: dict[tuple[str, str], str] = {}
    if is_hub_id(recipe.model.path):
        found["model", recipe.model.path] = "model.path"
    for key, path in read(recipe):
        if path.startswith(HUB):
            name = path.removeprefix(HUB).removeprefix("datasets/")
            owner_and_name = "/".join(name.split("/")[:2]).partition("@")[0]
            found.setdefault(("dataset", owner_and_name), key)
    return found


def is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def local(url: str) -> Path:
    """The path of a local folder."""
    return Path(url.removeprefix("file://")).expanduser().absolute()


def weights_bytes(recipe: Recipe) -> int | None:
    """Bytes of the base's weights, if its folder is on this machine."""
    folder = Path(recipe.model.path)
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(path.stat().st_size for path in files) if files else None
