"""Are the local files that a recipe names there? URLs and hub ids are not asked for.

Asks through `os.path`, whose answers for names that no file system takes are `False`, not exceptions.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path as FilePath

import tailor
from tailor.errors import Problem
from tailor.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    ARTIFACTS,
    CHECKPOINTS,
    EMBEDDING,
    MODEL,
    MODEL_CONFIG,
    MODULES,
    RECIPE,
)
from tailor.spec.reading.source import Document
from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys, path_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EMBEDS = (EMBEDDING, f"{ADAPTER}/{EMBEDDING}", f"{MODEL}/{EMBEDDING}", MODULES)
"""What a folder that makes embeddings has: one that gritlm trained, and one in the layout of sentence-transformers."""


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """A problem per file that is missing, with what was looked for. `wrong` are keys that have a problem already."""
    keys = Keys(document.values, wrong)
    return [
        document.at_value(path_of(key)).problem(path_of(key), message)
        for findings in (_model, _earlier_runs, _data, _final, _template, _run)
        for key, message in findings(keys)
    ]


def problems_of_evaluation(document: Document, wrong: set[str]) -> list[Problem]:
    """The same for an evaluation file."""
    keys = Keys(document.values, wrong)
    return [
        document.at_value(path_of(key)).problem(path_of(key), message)
        for key, message in _evaluated(keys, "")
    ]


def templates() -> dict[str, FilePath]:
    """The built-in chat templates: name -> file."""
    folder = FilePath(tailor.__file__).parent / "encode" / "templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja"))}


def is_hub_id(model: str) -> bool:
    """Whether a model's name is an id of the hub, and no folder here."""
    return "://" not in model and bool(_HUB_ID.fullmatch(model)) and not os.path.isdir(model)


def _model(keys: Keys) -> Iterator[Finding]:
    name = keys("model.path")
    path = _local(name)
    if path is None:
        return
    if os.path.isdir(path):
        if os.path.isfile(path / ADAPTER_CONFIG):  # beside some lies a config.json, for their base
            yield (
                "model.path",
                f"{name} is an adapter; name its base here, and the adapter in model.warm_start",
            )
        elif not os.path.isfile(path / MODEL_CONFIG):
            found = (one.parent for one in path.glob(f"*/{MODEL_CONFIG}"))
            nested = sorted(one.name for one in found if not os.path.isfile(one / ADAPTER_CONFIG))
            hint = f"; did you mean {FilePath(name) / nested[0]}?" if nested else ""
            yield "model.path", f"{name} is no model folder: it has no config.json{hint}"
        if keys("model.revision") is not None:
            yield "model.revision", f"has no effect: {name} is a local folder; it is for models of the hub"
    elif os.path.isfile(path):
        yield "model.path", f"{name} is a file; name the folder that holds config.json"
    elif not _HUB_ID.fullmatch(name):
        yield "model.path", f"no such folder, and no model id of the hub: {name}{_looked_for(name)}"


def _earlier_runs(keys: Keys) -> Iterator[Finding]:
    """The runs that this one begins with. One with checkpoints of its own needs them no more."""
    to = _local(keys("save.to"))
    if to is not None and os.path.isdir(to / CHECKPOINTS):
        return
    for key in ("save.resume", "model.warm_start"):
        name = keys(key)
        path = _local(name) if name not in ("auto", "never") else None
        if path is not None and not os.path.isdir(path):
            words = "; it may be auto, never, or the folder of a run" if key == "save.resume" else ""
            yield key, f"no such folder: {name}{_looked_for(name)}{words}"


def _data(keys: Keys) -> Iterator[Finding]:
    for section in ("data.train", "data.evaluation"):
        for key, source in keys.sources(section):
            yield from _rows(key, keys(f"{key}.path"), source)
    yield from _embedder(keys, "data.retrieve.embedder")


def _embedder(keys: Keys, key: str) -> Iterator[Finding]:
    """The model that scores passages. A run that is not finished yet may be so when it is needed."""
    path = _local(name := keys(key))
    if path is None:
        return
    if not os.path.isdir(path):
        if not _HUB_ID.fullmatch(name):
            yield key, f"no such folder, and no model id of the hub: {name}{_looked_for(name)}"
        return
    ended = any(os.path.isdir(path / one) for one in ARTIFACTS)
    begun = os.path.isfile(path / RECIPE) and not ended
    if not begun and not any(os.path.isfile(path / one) for one in _EMBEDS):
        names = "a run of gritlm, the folder of its adapter or model, or a model of sentence-transformers"
        yield key, f"{name} makes no embeddings; name {names}"


def _final(keys: Keys) -> Iterator[Finding]:
    yield from _rows("evaluate.retrieval.data", keys("evaluate.retrieval.data.path"), {})
    if keys("evaluate.final") is not None:
        yield from _evaluated(keys, "evaluate.final.")


def _evaluated(keys: Keys, prefix: str) -> Iterator[Finding]:
    """The files of an evaluation, and the models that it compares with."""
    for key, name in suite.paths(keys, prefix):
        source = key.removesuffix(".path")
        yield from _rows(source, name, {one: keys(f"{source}.{one}") for one in ("subset", "split")})
    yield from _embedder(keys, f"{prefix}data.retrieve.embedder")
    for key, name, reader in suite.folders(keys, prefix):
        path = _local(name)
        if path is not None and not os.path.isdir(path):
            yield key, f"no such folder: {name}{_looked_for(name)}"
        elif path is None and name is not None:
            yield key, f"{name} is no local folder, which {reader} reads"
    others = keys(f"{prefix}compare")
    for at, name in enumerate(others if isinstance(others, list) else ()):
        path = _local(name) if name != "base" else None
        if path is not None and not os.path.isdir(path):
            yield f"{prefix}compare.{at}", f"no such folder: {name}{_looked_for(name)}"


def _rows(key: str, name: object, source: dict[str, object]) -> Iterator[Finding]:
    """A source's files. `source` may have the keys of Hugging Face datasets."""
    path = _local(name)
    if path is None or not isinstance(name, str):
        return
    if has_magic(str(path)) and not os.path.exists(path):
        if not glob(str(path), recursive=True):
            yield f"{key}.path", f"no file matches {name}{_looked_for(name)}"
    elif not os.path.exists(path):
        hub = f"; for a dataset of the hub write hf://{name}" if name.count("/") == 1 else ""
        hub = hub if _HUB_ID.fullmatch(name) and not path.suffix else ""
        yield f"{key}.path", f"no such file or folder: {name}{_looked_for(name)}{hub}"
    elif os.path.isfile(path):
        for unused, default in (("subset", None), ("split", "train")):
            if source.get(unused) not in (None, default):
                yield f"{key}.{unused}", f"has no effect: {name} is a file; it is for Hugging Face datasets"


def _template(keys: Keys) -> Iterator[Finding]:
    name = keys("data.template")
    if not isinstance(name, str) or name in templates() or os.path.isfile(name):
        return
    near = difflib.get_close_matches(name, templates(), n=1)
    if near:
        yield "data.template", f"no built-in template and no file: {name}; did you mean {near[0]}?"
    else:
        names = ", ".join(templates())
        yield "data.template", f"no built-in template and no file: {name}; built in are {names}"


def _run(keys: Keys) -> Iterator[Finding]:
    for key in ("save.to", "data.store"):
        path = _local(keys(key))
        if path is not None and os.path.isfile(path):
            yield key, f"{path} is a file, and a folder is needed"


def _local(name: object) -> FilePath | None:
    """The path, or None for a URL or a value that is no text."""
    if not isinstance(name, str) or "::" in name:
        return None
    if name.startswith("file://"):
        return FilePath(name.removeprefix("file://"))
    if "://" in name:
        return None
    return FilePath(name).expanduser() if name.startswith("~/") else FilePath(name)


def _looked_for(name: str) -> str:
    """Where was looked, and what is there that looks like it."""
    path = _local(name) or FilePath(name)
    folder = path.parent
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        found = f"; there is no folder {path.parent} (looked in {FilePath.cwd()})"
        return found if not path.is_absolute() else f"; there is no folder {path.parent}"
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    except OSError:
        near = []
    where = f"; looked in {folder.resolve()}"
    return f"; did you mean {folder / near[0]}?" if near else where
