"""The models of an evaluation: the one named in the command, and those that it is compared with."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tailor.artifacts.base_model import base_record_of
from tailor.artifacts.find import find_artifact
from tailor.encode.model_files import load_config
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.evaluate import compression
from tailor.evaluate.batches import EvaluationBatch, ModelRef
from tailor.layout import (
    ADAPTER_CONFIG,
    ARTIFACTS,
    BEACON_CONFIG,
    GENERATION_CONFIG,
    GENERATIVE_ATTENTION,
    PLAN,
    RECIPE,
)
from tailor.models import files
from tailor.models.base_record import BaseRecord
from tailor.models.beacon.files import read_settings
from tailor.models.own_code import Trust
from tailor.plan import ModelFacts, beacon, encoders, rope
from tailor.spec.load import load_recipe
from tailor.spec.model import Beacon
from tailor.spec.recipe import Recipe
from tailor.spec.suite import BASE, UNSCALED, Decoding, Suite
from tailor.store import COMMIT, OBJECT, Store, listed_files, run_files


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    artifact: its folder. run: the run that produced it, if any. plan, recipe: of that run.
    """

    ref: ModelRef
    artifact: Store
    run: Store | None
    plan: dict[str, Any]
    recipe: Recipe | None

    @property
    def label(self) -> str:
        return self.ref.label

    def trusting(self, trust: Trust) -> EvaluatedModel:
        """The same model, whose own code may run as far as `trust` says."""
        return replace(self, ref=replace(self.ref, trust=trust))

    @property
    def derived_folder(self) -> str | None:
        """The folder's name in the run, for a model that was derived from the run's artifact (`merged`); None otherwise."""
        name = posixpath.basename(self.artifact.url)
        return name if self.run is not None and name not in ARTIFACTS else None

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter or beacons, so that the unchanged base can be evaluated with it."""
        return self.artifact.exists(ADAPTER_CONFIG) or self.artifact.exists(BEACON_CONFIG)

    @property
    def has_beacons(self) -> bool:
        return self.artifact.exists(BEACON_CONFIG) and not self.ref.without_adapter

    @property
    def is_prefix_lm(self) -> bool:
        """Whether it reads prompts in both directions."""
        return self.artifact.exists(GENERATIVE_ATTENTION) and not self.ref.without_adapter

    @property
    def base_path(self) -> str | None:
        """The base model that it was trained from; None for a model without a run."""
        return str(self.plan["model"]["path"]) if self.plan else None

    def tokenizer(self) -> Tokenizer:
        """The saved tokenizer, with the chat template of the training data."""
        return load_tokenizer(str(self.artifact.local_path()))

    def positions(self) -> int | None:
        """The maximum number of positions; None when its config.json has no limit or cannot be read."""
        config = self._config()
        limit = None if config is None else ModelFacts.from_config(config).positions
        spec = self.beacons()
        return limit if limit is None or spec is None else beacon.context(spec, limit)

    def beacons(self) -> Beacon | None:
        """The settings of its beacons; None for a model without beacons."""
        return read_settings(self.artifact.local_path(), self.artifact.url) if self.has_beacons else None

    def compression(
        self, batches: Iterable[EvaluationBatch], decoding: Decoding
    ) -> list[dict[str, Any]] | None:
        """The compression ratios that its beacons take for these batches; None for a model without beacons."""
        spec, config = self.beacons(), self._config()
        limit = None if config is None else ModelFacts.from_config(config).positions
        return None if spec is None else compression.taken(spec, limit, batches, decoding)

    @property
    def is_encoder(self) -> bool:
        """Whether it is an encoder, which embeds texts and cannot generate."""
        return encoders.is_encoder(self._config() or {})

    @property
    def can_exceed_positions(self) -> bool:
        """Whether it can read texts longer than its positions at all (RoPE can; learned position embeddings cannot)."""
        config = self._config()
        return config is None or config.get("model_type") not in rope.WITHOUT

    def base_record(self) -> BaseRecord | None:
        """The record of the base of an adapter or beacons; None for a full model."""
        folder = self.artifact.local_path()
        if self.artifact.exists(ADAPTER_CONFIG):
            return base_record_of(folder, self.run or self.artifact)
        return BaseRecord.read(folder) if self.artifact.exists(BEACON_CONFIG) else None

    def _config(self) -> Mapping[str, Any] | None:
        folder, record = self.artifact.local_path(), self.base_record()
        try:
            config = load_config(record.path, record.revision) if record else load_config(str(folder))
            scaling = None if self.ref.without_rope else record and record.rope
            return rope.extended(config, scaling, self.ref.url)
        except ModelError:  # loading the model reports what is wrong with the base
            return None

    @property
    def _variant(self) -> list[Any]:
        """What distinguishes it from other models of the same artifact."""
        return [self.ref.without_adapter, *(["without rope"] if self.ref.without_rope else [])]

    def identity(self) -> Any:
        """A value that changes with the model's files: checksums of a run's artifact, else a hash of samples of the weights and
        of all other files."""
        if self.artifact.exists(COMMIT):
            return [*self._variant, listed_files(self.artifact)]
        return [*self._variant, files.contents(self.artifact.local_path())]

    def stop_ids(self) -> tuple[int, ...]:
        """The stop tokens, from its generation_config.json."""
        ends = OBJECT.read(self.artifact, GENERATION_CONFIG).get("eos_token_id")
        return (ends,) if isinstance(ends, int) else tuple(ends or ())


def find_model(url: str) -> EvaluatedModel:
    """Open a run, an adapter folder or a model folder for evaluation. ModelError when `url` is none of them."""
    artifact, around = find_artifact(Store(url))
    made_by_run = around.exists(RECIPE) and around.exists(PLAN)
    run = around if made_by_run else None
    label, target = posixpath.basename((run or artifact).url.rstrip("/")), (run or artifact).url
    if run is not None and (name := posixpath.basename(artifact.url)) not in ARTIFACTS:
        label, target = f"{label}/{name}", artifact.url
    return EvaluatedModel(
        ModelRef(label, target),
        artifact,
        run,
        run_files.plan(run) if run is not None else {},
        load_recipe(run.local_path(RECIPE), check_files=False) if run is not None else None,
    )


def compared(main: EvaluatedModel, suite: Suite) -> list[str]:
    """The models to compare with, as `compare` names them. `evaluated_models` returns them in this order."""
    if suite.compare == "auto":
        return [BASE] if main.is_adapter else []
    if isinstance(suite.compare, str):
        return [BASE] if suite.compare == BASE else []
    return list(suite.compare)


def evaluated_models(main: EvaluatedModel, suite: Suite) -> list[EvaluatedModel]:
    """The models of an evaluation, `main` first. ModelError for one that does not exist, or is listed twice.

    A folder that has the name of another one, or of the keyword `base` where it is used, is labeled by its path.
    """
    others = compared(main, suite)
    reserved = {BASE, UNSCALED} & set(others)
    found: list[EvaluatedModel] = []
    for other in (None, *others):
        if other is None:
            model = main
        elif other in (BASE, UNSCALED):
            model = _base(main) if other == BASE else _unscaled(main)
        else:
            model = find_model(other)
        label = model.ref.label
        if other not in (BASE, UNSCALED) and label in {*reserved, *(known.ref.label for known in found)}:
            label = model.ref.url
        if any(known.ref.label == label for known in found):
            raise ModelError(f"compare: {other} is listed twice, or is the evaluated model itself")
        found.append(replace(model, ref=replace(model.ref, label=label)))
    for known in found[1:]:
        same = [model for model in found if model.ref.url == known.ref.url]
        if len({tuple(model._variant) for model in same}) < len(same):
            raise ModelError(f"compare: {known.ref.url} is listed twice, or is the evaluated model itself")
    return found


def _base(main: EvaluatedModel) -> EvaluatedModel:
    if main.is_adapter:
        # Loaded as in training: quantized if the run's recipe says so.
        ref = ModelRef(BASE, main.ref.url, without_adapter=True)
        return EvaluatedModel(ref, main.artifact, main.run, main.plan, main.recipe)
    if main.base_path is None:
        raise ModelError(
            f"compare: the base of {main.ref.url} is unknown: it is a full model that no run produced",
            hint="give the base's path as compare: [PATH], or remove compare",
        )
    ref = ModelRef(BASE, main.base_path, stop_ids=main.stop_ids(), embeds_like=main.artifact.url)
    return EvaluatedModel(ref, main.artifact, main.run, main.plan, main.recipe)


def _unscaled(main: EvaluatedModel) -> EvaluatedModel:
    """The base without `model.rope`. A full model's base has it in no case."""
    base, record = _base(main), main.base_record()
    if not (record.rope if record is not None else main.recipe and main.recipe.model.rope):
        raise ModelError(
            f"compare: {UNSCALED}: {main.ref.url} was trained without model.rope, so its base is not scaled",
            hint=f"compare with {BASE}",
        )
    return replace(base, ref=replace(base.ref, label=UNSCALED, without_rope=record is not None))


def identity_hash(model: EvaluatedModel) -> str:
    """A hash of the files of a model."""
    return hashlib.sha256(json.dumps(model.identity(), sort_keys=True).encode()).hexdigest()
