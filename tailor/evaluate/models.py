"""The models of an evaluation: the one that was named, and those beside it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailor.artifacts.base_model import base_record_of
from tailor.artifacts.load import find_artifact
from tailor.encode.tokenizer import Tokenizer, load_config, load_tokenizer
from tailor.errors import ModelError
from tailor.evaluate.batches import ModelRef
from tailor.layout import ADAPTER_CONFIG, ARTIFACTS, BEACON_CONFIG, GENERATION_CONFIG, PLAN, RECIPE
from tailor.models.base_record import BaseRecord
from tailor.plan import ModelFacts, beacon, rope
from tailor.spec.load import load_recipe
from tailor.spec.model import Beacon
from tailor.spec.recipe import Recipe
from tailor.spec.suite import Suite
from tailor.store import COMMIT, Store


@dataclass(frozen=True)
class Subject:
    """A model to evaluate. artifact: its folder. run: the run that made it, if one did."""

    ref: ModelRef
    artifact: Store
    run: Store | None
    plan: dict[str, Any]
    recipe: Recipe | None

    @property
    def label(self) -> str:
        return self.ref.label

    @property
    def beside(self) -> str | None:
        """Name of the folder in the run, where the model is not what the run trained but made of it (`merged`)."""
        name = posixpath.basename(self.artifact.url)
        return name if self.run is not None and name not in ARTIFACTS else None

    @property
    def is_adapter(self) -> bool:
        """Whether its base is beside it unchanged: it is an adapter, or beacons."""
        return self.artifact.exists(ADAPTER_CONFIG) or self.artifact.exists(BEACON_CONFIG)

    @property
    def has_beacons(self) -> bool:
        return self.artifact.exists(BEACON_CONFIG) and not self.ref.without_adapter

    @property
    def base_path(self) -> str | None:
        """The model that it was trained from; None for a model without a run."""
        return str(self.plan["model"]["path"]) if self.plan else None

    def tokenizer(self) -> Tokenizer:
        """As it was saved, with the template that the training data was rendered with."""
        return load_tokenizer(str(self.artifact.local_path()))

    def positions(self) -> int | None:
        """Positions that the model was made for, where its config.json says them."""
        config = self._config()
        limit = None if config is None else ModelFacts.from_config(config).positions
        if limit is None or not self.has_beacons:
            return limit
        return beacon.context(Beacon.model_validate(self.artifact.read_json(BEACON_CONFIG)), limit)

    @property
    def goes_beyond(self) -> bool:
        """Whether it takes longer texts than it was made for, well or not."""
        config = self._config()
        return config is None or config.get("model_type") not in rope.WITHOUT

    def _config(self) -> Mapping[str, Any] | None:
        folder, held = self.artifact.local_path(), None
        if self.artifact.exists(ADAPTER_CONFIG):
            held = base_record_of(folder, self.run or self.artifact)
        elif self.artifact.exists(BEACON_CONFIG):
            held = BaseRecord.read(folder)
        try:
            config = load_config(held.path, held.revision) if held else load_config(str(folder))
            return rope.extended(config, held and held.rope, self.ref.url)
        except ModelError:  # loading says what is wrong with the base
            return None

    def identity(self) -> Any:
        """Changes with the model's files."""
        if self.artifact.exists(COMMIT):
            return [self.ref.without_adapter, self.artifact.read_json(COMMIT)]
        files = [name for name in self.artifact.names() if not name.startswith(".")]
        return [
            self.ref.without_adapter,
            self.artifact.url,
            {name: self.artifact.size(name) for name in files},
        ]

    def stop_ids(self) -> tuple[int, ...]:
        """What ends its answers, from its generation_config.json."""
        ends = self.artifact.read_json(GENERATION_CONFIG).get("eos_token_id")
        return (ends,) if isinstance(ends, int) else tuple(ends or ())


def find_subject(url: str) -> Subject:
    """A run, an adapter folder or a model folder. ModelError when it is none."""
    artifact, around = find_artifact(Store(url))
    made_by_run = around.exists(RECIPE) and around.exists(PLAN)
    run = around if made_by_run else None
    label, target = posixpath.basename((run or artifact).url.rstrip("/")), (run or artifact).url
    if run is not None and (name := posixpath.basename(artifact.url)) not in ARTIFACTS:
        label, target = f"{label}/{name}", artifact.url
    return Subject(
        ModelRef(label, target),
        artifact,
        run,
        run.read_json(PLAN) if run is not None else {},
        load_recipe(run.local_path(RECIPE), check_files=False) if run is not None else None,
    )


def subjects(main: Subject, suite: Suite) -> list[Subject]:
    """The models of an evaluation, the named one first. ModelError for one that is not there, or is named twice."""
    wanted = suite.compare
    if wanted == "auto":
        wanted = "base" if main.is_adapter else "none"
    others = [] if wanted == "none" else ["base"] if wanted == "base" else list(wanted)
    found = [main]
    for other in others:
        subject = _base(main) if other == "base" else find_subject(other)
        if any(subject.ref.label == known.ref.label for known in found):
            if any(subject.ref.url == known.ref.url for known in found):
                raise ModelError(f"compare names {other}, which is the model itself or there already")
            # Folders of one name are told apart by their paths.
            subject = Subject(
                ModelRef(subject.ref.url, subject.ref.url),
                subject.artifact,
                subject.run,
                subject.plan,
                subject.recipe,
            )
        found.append(subject)
    return found


def _base(main: Subject) -> Subject:
    if main.is_adapter:
        # As it was trained: quantized where the run declares it.
        ref = ModelRef("base", main.ref.url, without_adapter=True)
        return Subject(ref, main.artifact, main.run, main.plan, main.recipe)
    if main.base_path is None:
        raise ModelError(
            f"{main.ref.url} is a whole model and no run, so its base is not known",
            hint="name it: compare: [PATH], or leave compare away",
        )
    ref = ModelRef("base", main.base_path, stop_ids=main.stop_ids(), embeds_like=main.artifact.url)
    return Subject(ref, main.artifact, main.run, main.plan, main.recipe)
