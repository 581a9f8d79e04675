"""Rules of local files: what a recipe names must exist. URLs and hub ids are not checked.

The checks use `os.path`: for names that are invalid in the file system it returns False, where `pathlib` would raise.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Iterator
from glob import glob, has_magic
from importlib.util import find_spec
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
from tailor.spec.reading.source import Document, parse
from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys, path_of
from tailor.spec.suite import BASE, UNSCALED

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?")
_PATHS = (
    "model.path",
    "model.warm_start",
    "data.template",
    "data.store",
    "data.retrieve.embedder",
    "save.to",
    "save.resume",
    "scale.strategy.config",
    "scale.strategy.nvme_path",
    "evaluate.retrieval.data.path",
)
"""Keys of paths outside of the lists of sources."""
GGUF = ".gguf"
_EMBEDS = (EMBEDDING, f"{ADAPTER}/{EMBEDDING}", f"{MODEL}/{EMBEDDING}", MODULES)
"""Files of a folder that makes embeddings: one that gritlm trained, or a sentence-transformers model."""


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """One problem per missing file, with the folder that was searched. wrong: the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    return [
        document.at_value(path_of(key)).problem(path_of(key), message)
        for findings in (_variables, _model, _data, _final, _template, _run)
        for key, message in findings(keys)
    ]


def problems_of_earlier_runs(document: Document, wrong: set[str]) -> list[Problem]:
    """One problem per missing run that this run starts from."""
    return [
        document.at_value(path_of(key)).problem(
            path_of(key), f"{message}; run {maker} first, which makes it" if maker else message
        )
        for key, message, maker in _missing_runs(document, Keys(document.values, wrong))
    ]


def problems_of_unknown_runs(document: Document, wrong: set[str]) -> list[Problem]:
    """The same, except for runs that a recipe beside this one makes."""
    return [
        document.at_value(path_of(key)).problem(path_of(key), message)
        for key, message, maker in _missing_runs(document, Keys(document.values, wrong))
        if not maker
    ]


def recipes_to_run_first(document: Document) -> list[str]:
    """The recipe files beside the document that make the missing runs it starts from."""
    return [maker for _, _, maker in _missing_runs(document, Keys(document.values, set())) if maker]


def problems_of_evaluation(document: Document, wrong: set[str]) -> list[Problem]:
    """The problems of an evaluation file, as in `problems`."""
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
    """Whether a model's name is a hub id and not a local folder."""
    is_id = "://" not in model and bool(_HUB_ID.fullmatch(model)) and not model.endswith(GGUF)
    return is_id and not os.path.isdir(model)


def _variables(keys: Keys) -> Iterator[Finding]:
    """Paths with environment variables. They would be kept in the run's recipe and mean something else elsewhere."""
    found = {key: keys(key) for key in _PATHS}
    for section in ("data.train", "data.evaluation", "data.decontaminate"):
        found |= {f"{key}.path": source.get("path") for key, source in keys.sources(section)}
    for prefix in ("evaluate.final.",) if keys("evaluate.final") is not None else ():
        found |= dict(suite.paths(keys, prefix))
    for key, name in found.items():
        variable = _VARIABLE.search(name) if isinstance(name, str) else None
        if variable and isinstance(name, str) and not os.path.exists(name):
            home = "; the home folder is ~/" if variable[0].strip("${}") == "HOME" else ""
            yield (
                key,
                (
                    f"{name}: environment variables ({variable[0]}) are not expanded; write the path{home}, or let the shell "
                    f'expand it: tailor run RECIPE {key}="{name}"'
                ),
            )


def hub_cache() -> FilePath:
    """The cache of the hub's files, without an import of huggingface_hub, which takes time."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return FilePath(os.path.expandvars(cache)).expanduser()


def _model(keys: Keys) -> Iterator[Finding]:
    name = keys("model.path")
    path = _local(name)
    if path is None:
        return
    if os.path.isdir(path):
        # Checked first: some adapters have the config.json of their base beside them.
        if os.path.isfile(path / ADAPTER_CONFIG):
            yield (
                "model.path",
                f"{name} is an adapter; set model.path to its base model and model.warm_start to the adapter",
            )
        elif not os.path.isfile(path / MODEL_CONFIG):
            found = (one.parent for one in path.glob(f"*/{MODEL_CONFIG}"))
            nested = sorted(one.name for one in found if not os.path.isfile(one / ADAPTER_CONFIG))
            hint = f"; did you mean {FilePath(name) / nested[0]}?" if nested else ""
            yield "model.path", f"{name} is not a model folder: it has no config.json{hint}"
        if keys("model.revision") is not None:
            yield (
                "model.revision",
                f"has no effect: {name} is a local folder, and only models on the hub have revisions",
            )
    elif name.endswith(GGUF):
        yield from _gguf(keys, name, path)
    elif os.path.isfile(path):
        yield "model.path", f"{name} is a file; write the folder that contains config.json"
    elif not _HUB_ID.fullmatch(name):
        yield "model.path", f"{name} is neither a folder nor a hub model id{_looked_for(name)}"


def _gguf(keys: Keys, name: str, path: FilePath) -> Iterator[Finding]:
    if not os.path.isfile(path):
        yield "model.path", f"no such file: {name}{_looked_for(name)}"
    elif find_spec("gguf") is None:
        yield "model.path", f"{name} needs the package gguf: pip install 'tailor[gguf]'"
    for key in ("model.revision", "model.dequantize"):
        if keys(key):
            why = (
                "only models on the hub have revisions"
                if key == "model.revision"
                else "it is always dequantized"
            )
            yield key, f"has no effect: {name} is a .gguf file, and {why}"


def _missing_runs(document: Document, keys: Keys) -> Iterator[tuple[str, str, str]]:
    """(key, message, recipe file that makes the run, or empty). A run with checkpoints of its own needs no other."""
    to = _local(keys("save.to"))
    if to is not None and os.path.isdir(to / CHECKPOINTS):
        return
    for key in ("save.resume", "model.warm_start"):
        name = keys(key)
        path = _local(name) if name not in ("auto", "never") else None
        if path is not None and not os.path.isdir(path):
            words = "; write auto, never, or the folder of a run" if key == "save.resume" else ""
            yield key, f"no such folder: {name}{_looked_for(name)}{words}", _maker(document.file, path)


def _maker(file: str, run: FilePath) -> str:
    """The recipe beside `file` whose `save.to` is the run, or empty."""
    for other in sorted(FilePath(file).parent.glob("*.y*ml")):
        try:
            to = _local(parse(other.read_text(encoding="utf-8"), str(other)).get(("save", "to")))
        except (OSError, ValueError):
            continue
        if (
            to is not None
            and other.name != FilePath(file).name
            and os.path.abspath(to) == os.path.abspath(run)
        ):
            return str(other)
    return ""


def _data(keys: Keys) -> Iterator[Finding]:
    for section in ("data.train", "data.evaluation", "data.decontaminate"):
        for key, source in keys.sources(section):
            yield from _rows(key, keys(f"{key}.path"), source)
    yield from _embedder(keys, "data.retrieve.embedder")


def _embedder(keys: Keys, key: str) -> Iterator[Finding]:
    """The model that scores passages. An unfinished run is accepted, since it may be finished when it is needed."""
    path = _local(name := keys(key))
    if path is None:
        return
    if not os.path.isdir(path):
        if not _HUB_ID.fullmatch(name):
            yield key, f"{name} is neither a folder nor a hub model id{_looked_for(name)}"
        return
    finished = any(os.path.isdir(path / folder) for folder in ARTIFACTS)
    unfinished = os.path.isfile(path / RECIPE) and not finished
    if not unfinished and not any(os.path.isfile(path / file) for file in _EMBEDS):
        allowed = "a run of gritlm, its adapter or model folder, or a sentence-transformers model"
        yield key, f"{name} makes no embeddings; write {allowed}"


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
            yield key, f"{name} is not a local folder; {reader} reads only local folders"
    for key, name in suite.code(keys, prefix):
        path = _local(name)
        if path is None and name.endswith(".py"):
            yield key, f"{name} is not a local file"
        elif path is not None and name.endswith(".py") and not os.path.isfile(path):
            yield key, f"no such file: {name}{_looked_for(name)}"
    others = keys(f"{prefix}compare")
    for at, name in enumerate(others if isinstance(others, list) else ()):
        path = _local(name) if name not in (BASE, UNSCALED) else None
        if path is not None and not os.path.isdir(path):
            yield f"{prefix}compare.{at}", f"no such folder: {name}{_looked_for(name)}"


def _rows(key: str, name: object, source: dict[str, object]) -> Iterator[Finding]:
    """The files of a source. source: its keys `subset` and `split`, if it has them."""
    path = _local(name)
    if path is None or not isinstance(name, str):
        return
    if has_magic(str(path)) and not os.path.exists(path):
        if not glob(str(path), recursive=True):
            yield f"{key}.path", f"no file matches {name}{_looked_for(name)}"
    elif not os.path.exists(path):
        hub = f"; for a hub dataset write hf://{name}" if name.count("/") == 1 else ""
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
    near = difflib.get_close_matches(name.lower(), templates(), n=3, cutoff=0.75)
    if near:
        names = " or ".join(near)
        yield "data.template", f"{name} is neither a built-in template nor a file; did you mean {names}?"
    else:
        names = ", ".join(templates())
        yield (
            "data.template",
            f"{name} is neither a built-in template nor a file; the built-in ones are {names}",
        )


def _run(keys: Keys) -> Iterator[Finding]:
    for key in ("save.to", "data.store"):
        path = _local(keys(key))
        if path is not None and os.path.isfile(path):
            yield key, f"{path} is a file; write a folder"


def _local(name: object) -> FilePath | None:
    """The local path. None for a URL or a value that is not text."""
    if not isinstance(name, str) or "::" in name:
        return None
    if name.startswith("file://"):
        return FilePath(name.removeprefix("file://"))
    if "://" in name:
        return None
    return FilePath(name).expanduser() if name.startswith("~/") else FilePath(name)


def _looked_for(name: str) -> str:
    """A hint: the file with the most similar name, or the folder that was searched."""
    path = _local(name) or FilePath(name)
    folder = path.parent
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        found = f"; there is no folder {path.parent} (searched in {FilePath.cwd()})"
        return found if not path.is_absolute() else f"; there is no folder {path.parent}"
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    except OSError:
        near = []
    searched = f"; searched in {folder.resolve()}"
    return f"; did you mean {folder / near[0]}?" if near else searched
