"""What other machines see of what a recipe names: the files that it reads, and the folders that it writes."""

from __future__ import annotations

import json
import os.path
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailor.errors import TemplateError
from tailor.layout import RECIPE
from tailor.spec import load
from tailor.spec.data import Source
from tailor.spec.recipe import Recipe
from tailor.spec.rules import files
from tailor.spec.rules.deepspeed import KEY as DEEPSPEED_KEY
from tailor.spec.rules.keys import Finding, path_of
from tailor.spec.strategy import DeepSpeed
from tailor.spec.tasks.rows import Corpus, Questions, Texts

TEMPLATE = "template.jinja"
DEEPSPEED = "deepspeed.json"
"""The names under which a recipe and what it names of this machine travel."""


@dataclass(frozen=True)
class Reach:
    """What the machines of a cluster see, and in which words it is told."""

    machines: str
    """Their name in a message, such as `pods`."""
    there: str
    """Where a path is meant, such as `in a pod`."""
    working_dir: str
    """Relative paths are seen from it, there."""
    shared: tuple[str, ...]
    """Folders that all of them see as one, and may write."""
    to_write: str
    """The hint of a place that cannot be written."""
    own_folder: str
    """What is wrong with a folder that each machine has for itself, and the hint."""
    to_read: str
    """The hint of a file that they don't see."""
    readable: tuple[str, ...] = ()
    """More folders whose files all of them see."""
    read_only: Mapping[str, str] = field(default_factory=dict)
    """Those among `readable` of which more can be said: folder -> why nothing is written there."""

    def path(self, name: str) -> str | None:
        """The absolute path there, or None for a URL."""
        path = name.removeprefix("file://")
        if "://" in path or "::" in path:
            return None
        return posixpath.normpath(posixpath.join(self.working_dir, path))

    def sees(self, name: str) -> bool:
        """Whether every machine sees the file: by a URL, or in a folder that it shares or has."""
        path = self.path(name)
        if path is None:
            return not name.startswith("memory://")
        return any(below(path, folder) for folder in (*self.shared, *self.readable))


def below(path: str, folder: str) -> bool:
    """Whether an absolute path is the folder or lies below it."""
    parts, outer = ([part for part in name.split("/") if part] for name in (path, folder))
    return parts[: len(outer)] == outer


def written(recipe: Recipe, reach: Reach) -> Iterator[Finding]:
    """What is written must outlive the machines, and be the same folder for all of them."""
    places = [("save.to", recipe.save.to)]
    if recipe.data.store is not None:
        places.append(("data.store", recipe.data.store))
    for key, name in places:
        if name.startswith("memory://"):
            yield key, f"is in one process's memory; write s3://… or {reach.to_write}"
        elif name.startswith(("http://", "https://", "hf://")):
            yield key, f"{name} cannot be written; write s3://… or {reach.to_write}"
        elif (path := reach.path(name)) is not None and not any(
            below(path, folder) for folder in reach.shared
        ):
            why = next((why for folder, why in reach.read_only.items() if below(path, folder)), None)
            seen = f" ({path} {reach.there})" if path != name else ""
            yield key, f"{name} {why}" if why else f"{name}{seen} {reach.own_folder}"


def read(recipe: Recipe, reach: Reach, *, carried: bool) -> Iterator[Finding]:
    """What is read must be seen by every machine. carried: a chat template of this machine goes with the recipe."""
    unseen = f"is on this machine, and {reach.machines} don't see it; {reach.to_read}"
    for key, source in sources(recipe):
        if source.path.startswith("memory://"):
            yield key, f"is in one process's memory; {reach.to_read}"
        elif not reach.sees(source.path):
            yield key, f"{source.path} {unseen}"
    model = recipe.model.path
    if not files.is_hub_id(model) and not reach.sees(model):
        yield "model.path", f"{model} {unseen}"
    for key, run in _runs(recipe):
        if not reach.sees(run):
            yield key, f"{run} {unseen}"
    config = _deepspeed_file(recipe, reach)
    if config is not None and not (carried and os.path.isfile(config)):
        yield DEEPSPEED_KEY, f"no file that {reach.machines} see: {config}; {reach.to_read}"
    template = template_file(recipe, reach)
    if template is not None and not (carried and os.path.isfile(template)):
        yield (
            "data.template",
            f"no built-in template and no file that {reach.machines} see: {template}; {reach.to_read}",
        )


def absolute(recipe: Recipe, reach: Reach) -> Recipe:
    """The recipe with every local name as the absolute path that is meant there."""
    values = recipe.model_dump(mode="json")
    model = recipe.model.path
    names = [("save.to", recipe.save.to), *_runs(recipe)]
    names += [(key, source.path) for key, source in sources(recipe)]
    names += [("data.store", recipe.data.store)] if recipe.data.store is not None else []
    names += [("model.path", model)] if not files.is_hub_id(model) else []
    if recipe.data.template is not None and reach.sees(recipe.data.template):
        names.append(("data.template", recipe.data.template))
    strategy = recipe.scale.strategy
    if isinstance(strategy, DeepSpeed) and strategy.config is not None and reach.sees(strategy.config):
        names.append((DEEPSPEED_KEY, strategy.config))
    for key, name in names:
        *above, last = path_of(key)
        section: Any = values
        for step in above:
            section = section[step]
        section[last] = reach.path(name) or name
    return Recipe.model_validate_json(json.dumps(values), strict=True)


def parcel(recipe: Recipe, reach: Reach, folder: str) -> dict[str, str]:
    """What travels to the machines, by file name: the texts of the resolved recipe, its chat template and DeepSpeed JSON.

    folder: where they lie there. TemplateError when the template cannot be read.
    """
    texts: dict[str, str] = {}
    template = template_file(recipe, reach)
    if template is not None:
        texts[TEMPLATE] = _text_of(template)
        data = recipe.data.model_copy(update={"template": posixpath.join(folder, TEMPLATE)})
        recipe = recipe.model_copy(update={"data": data})
    config = _deepspeed_file(recipe, reach)
    if config is not None:
        texts[DEEPSPEED] = _text_of(config)
        strategy = recipe.scale.strategy.model_copy(update={"config": posixpath.join(folder, DEEPSPEED)})  # type: ignore[union-attr]
        scale = recipe.scale.model_copy(update={"strategy": strategy})
        recipe = recipe.model_copy(update={"scale": scale})
    return {RECIPE: load.resolved_yaml(recipe), **texts}


def template_file(recipe: Recipe, reach: Reach) -> str | None:
    """The chat template's file when it is on this machine alone and must be carried."""
    name = recipe.data.template
    if name is None or name in files.templates() or reach.sees(name):
        return None
    return name


def _deepspeed_file(recipe: Recipe, reach: Reach) -> str | None:
    """The same of a DeepSpeed JSON."""
    name = recipe.scale.strategy.config if isinstance(recipe.scale.strategy, DeepSpeed) else None
    return None if name is None or reach.sees(name) else name


def sources(recipe: Recipe) -> Iterator[tuple[str, Source | Questions | Corpus | Texts]]:
    """(key, source) of all rows that are read, to train on and to evaluate on."""
    final = recipe.evaluate.final
    evaluated = final.data.evaluation if final is not None and final.data is not None else []
    for key, some in (
        ("data.train", recipe.data.train),
        ("data.evaluation", recipe.data.evaluation),
        ("evaluate.final.data.evaluation", evaluated),
    ):
        for index, source in enumerate(some):
            yield f"{key}.{index}.path", source
    for index, task in enumerate(final.tasks if final is not None else ()):
        for name in task.sources:
            if (data := getattr(task, name, None)) is not None:
                yield f"evaluate.final.tasks.{index}.{name}.path", data
    if recipe.evaluate.retrieval is not None:
        yield "evaluate.retrieval.data.path", recipe.evaluate.retrieval.data


def _runs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, folder) of the runs and models that this run begins with, is compared with, or chooses passages by."""
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


def _text_of(template: str) -> str:
    try:
        return Path(template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TemplateError(f"{template} is not UTF-8") from None
    except OSError as error:
        raise TemplateError(f"{template} cannot be read: {(error.strerror or str(error)).lower()}") from None
