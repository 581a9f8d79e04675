"""Check that all machines of a cluster can reach the files and folders of a recipe, and bundle local files with it."""

from __future__ import annotations

import json
import os.path
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailor.errors import TemplateError
from tailor.layout import RECIPE
from tailor.redaction import is_secret
from tailor.spec import load
from tailor.spec.bounds import renamed
from tailor.spec.data import Benchmark, Source
from tailor.spec.recipe import Recipe
from tailor.spec.rules import files
from tailor.spec.rules.deepspeed import KEY as DEEPSPEED_KEY
from tailor.spec.rules.keys import Finding, path_of
from tailor.spec.strategy import DeepSpeed
from tailor.spec.tasks.rows import Corpus, Questions, Texts

TEMPLATE = "template.jinja"
DEEPSPEED = "deepspeed.json"
"""Names of the files that are sent to the machines with the recipe."""


@dataclass(frozen=True)
class Visibility:
    """Which files the machines of a cluster can reach, and the words for it in messages."""

    machines: str
    """What messages call the machines, such as `pods`."""
    context: str
    """Where a path is meant, such as `in a pod`."""
    working_dir: str
    """Folder on the machines to which relative paths are relative."""
    shared: tuple[str, ...]
    """Folders that all machines share and can write."""
    write_hint: str
    """Hint for a path that cannot be written: a folder that can."""
    not_shared: str
    """Message and hint for a folder that is not shared between the machines."""
    read_hint: str
    """Hint for a file that the machines cannot reach."""
    readable: tuple[str, ...] = ()
    """Further folders that all machines can read."""
    read_only: Mapping[str, str] = field(default_factory=dict)
    """Folders of `readable` that cannot be written -> why."""

    def path(self, name: str) -> str | None:
        """The absolute path on the machines. None for a URL."""
        path = name.removeprefix("file://")
        if "://" in path or "::" in path:
            return None
        return posixpath.normpath(posixpath.join(self.working_dir, path))

    def is_reachable(self, name: str) -> bool:
        """Whether every machine can read the file: it has a URL, or is in a shared or readable folder."""
        path = self.path(name)
        if path is None:
            return not name.startswith("memory://")
        return any(below(path, folder) for folder in (*self.shared, *self.readable))


def below(path: str, folder: str) -> bool:
    """Whether an absolute path is the folder or is inside it."""
    parts, outer = ([part for part in name.split("/") if part] for name in (path, folder))
    return parts[: len(outer)] == outer


def check_writes(recipe: Recipe, visibility: Visibility) -> Iterator[Finding]:
    """Folders that the run writes must be shared by all machines and outlive them."""
    folders = [("save.to", recipe.save.to)]
    if recipe.data.store is not None:
        folders.append(("data.store", recipe.data.store))
    for key, name in folders:
        if name.startswith("memory://"):
            yield key, f"memory:// is only visible to one process; write s3://… or {visibility.write_hint}"
        elif name.startswith(("http://", "https://", "hf://")):
            yield key, f"{name} cannot be written; write s3://… or {visibility.write_hint}"
        elif (path := visibility.path(name)) is not None and not any(
            below(path, folder) for folder in visibility.shared
        ):
            reason = next((why for folder, why in visibility.read_only.items() if below(path, folder)), None)
            resolved = f" ({path} {visibility.context})" if path != name else ""
            yield key, f"{name} {reason}" if reason else f"{name}{resolved} {visibility.not_shared}"


def check_reads(recipe: Recipe, visibility: Visibility, *, bundled: bool) -> Iterator[Finding]:
    """Files that the run reads must be reachable from every machine.

    bundled: whether local files (chat template, DeepSpeed JSON) are sent to the machines with the recipe.
    """
    unreachable = f"is on this machine, and {visibility.machines} cannot read it; {visibility.read_hint}"
    for key, source in sources(recipe):
        if source.path.startswith("memory://"):
            yield key, f"memory:// is only visible to one process; {visibility.read_hint}"
        elif not visibility.is_reachable(source.path):
            yield key, f"{source.path} {unreachable}"
    model = recipe.model.path
    if not files.is_hub_id(model) and not visibility.is_reachable(model):
        yield "model.path", f"{model} {unreachable}"
    for key, run in _runs(recipe):
        if not visibility.is_reachable(run):
            yield key, f"{run} {unreachable}"
    for key, function in _code(recipe):
        file = function.rpartition(":")[0]
        if not visibility.is_reachable(file):
            yield key, f"{file} {unreachable}"
    config = _deepspeed_file(recipe, visibility)
    if config is not None and not (bundled and os.path.isfile(config)):
        yield (
            DEEPSPEED_KEY,
            f"{config} is not a file that {visibility.machines} can read; {visibility.read_hint}",
        )
    template = template_file(recipe, visibility)
    if template is not None and not (bundled and os.path.isfile(template)):
        yield (
            "data.template",
            f"{template} is neither a built-in template nor a file that {visibility.machines} can read; {visibility.read_hint}",
        )


def absolute(recipe: Recipe, visibility: Visibility) -> Recipe:
    """The recipe with every local path as the absolute path on the machines."""
    values = recipe.model_dump(mode="json")
    model = recipe.model.path
    names = [("save.to", recipe.save.to), *_runs(recipe)]
    names += [(key, source.path) for key, source in sources(recipe)]
    names += [("data.store", recipe.data.store)] if recipe.data.store is not None else []
    names += [("model.path", model)] if not files.is_hub_id(model) else []
    template = _own_template(recipe)
    if template is not None and visibility.is_reachable(template):
        names.append(("data.template", template))
    strategy = recipe.scale.strategy
    if (
        isinstance(strategy, DeepSpeed)
        and strategy.config is not None
        and visibility.is_reachable(strategy.config)
    ):
        names.append((DEEPSPEED_KEY, strategy.config))
    for key, name in names:
        *above, last = path_of(key)
        section: Any = values
        for step in above:
            section = section[step]
        section[last] = visibility.path(name) or name
    for key, function in _code(recipe):
        file, _, name = function.rpartition(":")
        *above, last = path_of(key)
        section = values
        for step in above:
            section = section[step]
        section[last] = f"{visibility.path(file) or file}:{name}"
    final, moved = recipe.evaluate.final, dict(_runs(recipe)).values()
    if final is not None:
        paths = {name: visibility.path(name) or name for name in moved}
        bounds = {metric: renamed(text, paths) for metric, text in final.fail_if.items()}
        values["evaluate"]["final"]["fail_if"] = bounds
    return Recipe.model_validate_json(json.dumps(values), strict=True)


def bundle(recipe: Recipe, visibility: Visibility, folder: str) -> dict[str, str]:
    """The files that are sent to the machines with the recipe: name -> text.

    They are the resolved recipe, its chat template and its DeepSpeed JSON. folder: where they are on the machines.
    Raises TemplateError when a file cannot be read.
    """
    texts: dict[str, str] = {}
    template = template_file(recipe, visibility)
    if template is not None:
        texts[TEMPLATE] = _text_of(template)
        data = recipe.data.model_copy(update={"template": posixpath.join(folder, TEMPLATE)})
        recipe = recipe.model_copy(update={"data": data})
    config = _deepspeed_file(recipe, visibility)
    if config is not None:
        texts[DEEPSPEED] = _text_of(config)
        strategy = recipe.scale.strategy.model_copy(update={"config": posixpath.join(folder, DEEPSPEED)})  # type: ignore[union-attr]
        scale = recipe.scale.model_copy(update={"strategy": strategy})
        recipe = recipe.model_copy(update={"scale": scale})
    return {RECIPE: load.resolved_yaml(recipe), **texts}


def template_file(recipe: Recipe, visibility: Visibility) -> str | None:
    """The chat template's file, if it is only on this machine and must be bundled."""
    name = _own_template(recipe)
    return None if name is None or visibility.is_reachable(name) else name


def _own_template(recipe: Recipe) -> str | None:
    """The file of the chat template; None for a built-in template, which is a name and not a path."""
    name = recipe.data.template
    return None if name in files.templates() else name


def _deepspeed_file(recipe: Recipe, visibility: Visibility) -> str | None:
    """The DeepSpeed JSON, if it is only on this machine and must be bundled."""
    name = recipe.scale.strategy.config if isinstance(recipe.scale.strategy, DeepSpeed) else None
    return None if name is None or visibility.is_reachable(name) else name


def sources(recipe: Recipe) -> Iterator[tuple[str, Source | Benchmark | Questions | Corpus | Texts]]:
    """(key, source) of all rows that are read, for training and evaluation."""
    final = recipe.evaluate.final
    evaluated = final.data.evaluation if final is not None and final.data is not None else []
    groups: tuple[tuple[str, Sequence[Source | Benchmark]], ...] = (
        ("data.train", recipe.data.train),
        ("data.evaluation", recipe.data.evaluation),
        ("data.decontaminate", recipe.data.decontaminate),
        ("evaluate.final.data.evaluation", evaluated),
    )
    for key, group in groups:
        for index, source in enumerate(group):
            yield f"{key}.{index}.path", source
    for index, task in enumerate(final.tasks if final is not None else ()):
        for name in task.sources:
            if (data := getattr(task, name, None)) is not None:
                yield f"evaluate.final.tasks.{index}.{name}.path", data
    if recipe.evaluate.retrieval is not None:
        yield "evaluate.retrieval.data.path", recipe.evaluate.retrieval.data


def _runs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, folder) of the runs and models that this run starts from, is compared with, or uses to score passages."""
    final = recipe.evaluate.final
    for key, data in (
        ("data", recipe.data),
        ("evaluate.final.data", final.data if final is not None else None),
    ):
        embedder = data.retrieve.embedder if data is not None and data.retrieve is not None else None
        if embedder is not None and not files.is_hub_id(embedder):
            yield f"{key}.retrieve.embedder", embedder
    if recipe.save.resume not in ("auto", "never"):
        yield "save.resume", recipe.save.resume
    if recipe.model.warm_start is not None:
        yield "model.warm_start", recipe.model.warm_start
    compare = recipe.evaluate.final.compare if recipe.evaluate.final is not None else ()
    for index, other in enumerate(compare if isinstance(compare, list) else ()):
        if other != "base":
            yield f"evaluate.final.compare.{index}", other
    for index, task in enumerate(recipe.evaluate.final.tasks if recipe.evaluate.final is not None else ()):
        for name in task.folders:
            if (folder := getattr(task, name)) is not None:
                yield f"evaluate.final.tasks.{index}.{name}", folder


def _code(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, `FILE.py:FUNCTION`) of the user's functions that the evaluation of the finished run calls."""
    for index, task in enumerate(recipe.evaluate.final.tasks if recipe.evaluate.final is not None else ()):
        for name in task.code:
            yield f"evaluate.final.tasks.{index}.{name}", getattr(task, name)


def _text_of(template: str) -> str:
    try:
        text = Path(template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TemplateError(f"{template} is not UTF-8") from None
    except OSError as error:
        raise TemplateError(f"{template} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if is_secret(text):
        raise TemplateError(
            f"{template} contains a secret, and would be sent to the cluster",
            hint=f"put secrets into {Recipe.secrets_location}",
        )
    return text
