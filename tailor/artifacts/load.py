"""A run's artifact, an adapter folder or a plain model folder, ready to answer."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts.base_model import base_record_of, is_trusted, model_spec, saved_dtype
from tailor.encode.template import Message
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, ARTIFACTS, BEACON_CONFIG, GENERATION_CONFIG, MODEL_CONFIG, RECIPE
from tailor.models import attention
from tailor.models.base_record import BaseRecord
from tailor.models.beacon import files as beacon_files
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import CausalModel, base_of
from tailor.models.embedding.attention import check_attention
from tailor.models.embedding.embedder import Embedder
from tailor.models.embedding.settings import Embedding
from tailor.models.files import find_folder
from tailor.models.load import DTYPES, load_network
from tailor.plan import beacon, rope
from tailor.spec.model import Model
from tailor.store import COMMIT, Store, run_folder, verify

HASHED_BYTES = 1 << 30
"""An artifact of up to so many bytes is compared with its checksums (a second); a larger one by its files' sizes."""


@dataclass(frozen=True)
class Loaded:
    """A model with the tokenizer and the stop tokens that it was saved with."""

    model: Any
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    pad_id: int

    def require_template(self) -> None:
        """ModelError when the model was saved without a chat template."""
        if self.tokenizer.template is None:
            raise ModelError(
                f"{self.tokenizer.name} has no chat template: it was not trained on conversations",
                hint="continue a text with `tailor generate RUN --plain --prompt TEXT`",
            )

    def require_adapter(self) -> None:
        """ModelError when there is no adapter (and no beacons) that could be left out."""
        if not hasattr(self.model, "disable_adapter") and beacons_of(self.model) is None:
            raise ModelError(
                f"{self.tokenizer.name} is a whole model: it has no adapter beside whose base it could answer",
                hint="leave --base out, or chat with the base's own folder",
            )

    def without_adapter(self) -> AbstractContextManager[None]:
        """The base as it was before the adapter, or before the beacons, meanwhile."""
        beacons = beacons_of(self.model)
        context: AbstractContextManager[None] = (
            self.model.disable_adapter() if beacons is None else beacons.disabled()
        )
        return context

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """A conversation up to where the model answers, rendered as in training."""
        self.require_template()
        return self.tokenizer.encode(self.tokenizer.render(messages, tools, add_generation_prompt=True))

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for, prompt and answer together."""
        limit = rope.positions(self.model.config.get_text_config().to_dict())
        beacons = beacons_of(self.model)
        if limit is None or beacons is None or beacons.off:
            return limit
        return beacon.context(beacons.spec, limit)


def load_run(url: str, device: str | None = None) -> Loaded:
    """Load what `url` holds: a finished run, a folder with an adapter, or a folder with a model.

    device: by default a GPU where there is one. An adapter is put onto its base as it was trained: quantized where the
    run declares it. Raises
    ModelError when there is no artifact, and when an adapter's base is not there or does not fit, StoreError
    when a file of the artifact is missing or is not the one that the run wrote.
    """
    store, run = find_artifact(Store(url))
    folder = store.local_path()
    if store.exists(COMMIT):
        parent, name = posixpath.split(store.url.rstrip("/"))
        verify(Store(parent), name, folder, hashed_bytes=HASHED_BYTES)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    load = (
        _adapted if store.exists(ADAPTER_CONFIG) else _with_beacons if store.exists(BEACON_CONFIG) else _whole
    )
    model = load(folder, store.url, run, place)
    tokenizer = load_tokenizer(str(folder))
    ends = model.generation_config.eos_token_id
    stops = [ends] if isinstance(ends, int) else list(ends or [])
    pads = [token for token in (tokenizer.pad_id, tokenizer.eos_id, 0) if token is not None]
    return Loaded(model.eval(), tokenizer, tuple(stops), pads[0])


def find_artifact(store: Store) -> tuple[Store, Store]:
    """The folder of the adapter or model, and the run's folder around it (where there is one). ModelError when there is none."""
    for below in ARTIFACTS:
        if store.is_committed(below):
            return store.join(below), store
    if any(store.exists(name) for name in (ADAPTER_CONFIG, MODEL_CONFIG, BEACON_CONFIG)):
        return store, Store(posixpath.dirname(store.url.rstrip("/")))
    if store.exists(RECIPE):
        raise ModelError(
            f"the run at {store.url} is not finished: it has neither adapter/ nor model/",
            hint="run its recipe again, which goes on from the last checkpoint",
        )
    raise ModelError(f"{store.url} holds no run, no adapter and no model", hint=_instead(store))


def refuse_beacons(store: Store, done: str) -> None:
    """ModelError when `store` holds beacons, which cannot be `done`."""
    if store.exists(BEACON_CONFIG):
        raise ModelError(
            f"{store.url} holds activation beacons, which cannot be {done}",
            hint="use them with `tailor chat`, `generate` and `evaluate`",
        )


def _instead(store: Store) -> str:
    """What to name in place of a folder that holds nothing to load."""
    if store.is_file():
        return "name a folder: of a run (save.to of its recipe), an adapter or a model"
    if run_folder.is_checkpoint(store):
        return "it is a checkpoint, which `tailor export`, `tailor average` and model.warm_start take; name its run"
    parent, name = posixpath.split(store.url.rstrip("/"))
    near = difflib.get_close_matches(name, Store(parent).names(), n=3, cutoff=0.5)
    if near and not store.exists():
        return "did you mean " + " or ".join(posixpath.join(parent, other) for other in near) + "?"
    return "`tailor runs` lists the runs below a folder"


def _whole(folder: Path, url: str, run: Store, device: torch.device) -> Any:
    spec = Model(path=str(folder), trust_remote_code=is_trusted(run))
    return load_network(spec, dtype=saved_dtype(folder), device=device)


def _with_beacons(folder: Path, url: str, run: Store, device: torch.device) -> Any:
    from transformers import GenerationConfig

    base_record = BaseRecord.read(folder)
    if base_record is None:
        raise ModelError(
            f"the beacons at {url} have no base.json, which names their base",
            hint="bring back the file that the run wrote",
        )
    network = _base_of("beacons", url, base_record, model_spec(base_record, run), device)
    beacon_files.load_beacons(network, folder, url)
    network.generation_config = GenerationConfig.from_pretrained(str(folder))
    return network


def _adapted(folder: Path, url: str, run: Store, device: torch.device) -> Any:
    base_record = base_record_of(folder, run)
    return load_adapted(folder, url, base_record, model_spec(base_record, run), device)


def load_adapted(folder: Path, url: str, base_record: BaseRecord, spec: Model, device: torch.device) -> Any:
    """The adapter in `folder` on its base, as it was trained (a PeftModel). ModelError. `url`: for messages."""
    from peft import PeftModel
    from transformers import GenerationConfig

    base = base_record.path
    network = _base_of("adapter", url, base_record, spec, device)
    try:
        model: Any = PeftModel.from_pretrained(network, str(folder))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the adapter at {url} does not fit its base model {base}: {' '.join(str(error).split())[:200]}",
            hint="the base must be the model that the adapter was trained on",
        ) from error
    # Written by a run; PEFT's own folders have none, and then the base model's counts.
    declared = (folder / GENERATION_CONFIG).is_file()
    model.generation_config = (
        GenerationConfig.from_pretrained(str(folder)) if declared else network.generation_config
    )
    return model


def _base_of(
    what: Literal["adapter", "beacons"], url: str, base_record: BaseRecord, spec: Model, device: torch.device
) -> Any:
    """The base of what lies at `url`, as training held it. ModelError."""
    base = base_record.path
    needs = f"the adapter at {url} needs its" if what == "adapter" else f"the beacons at {url} need their"
    moved = f"bring it back to {Path(base).absolute()} (a link does)"
    try:
        found = find_folder(base, base_record.revision, trust_remote_code=spec.trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{needs} base model {base}: {error.message}", hint=moved) from error
    base_record.check(found, url, hint=moved)
    try:
        return load_network(spec, dtype=DTYPES[base_record.dtype], device=device)
    except ModelError as error:
        raise ModelError(
            f"{needs} base model {base}, which could not be loaded: {error.message}",
            hint=f"the base must be the model that the {what} {'was' if what == 'adapter' else 'were'} trained on",
        ) from error


def load_embedder(
    url: str, *, dimension: int | None = None, max_length: int | None = None, device: str | None = None
) -> Embedder:
    """Load what embeds: a finished run, or the folder of its adapter or model. ModelError, StoreError.

    device: by default a GPU where there is one. The attention is proven as at the start of training.
    """
    store, _ = find_artifact(Store(url))
    settings, projection = Embedding.read(store.local_path(), store.url)
    loaded = load_run(url, device)
    model = causal_model(loaded.model)
    model.projection = None if projection is None else projection.to(model.device)
    check_attention(model, model.base.dtype, attention=settings.attention, window=settings.window)
    return Embedder(model, loaded.tokenizer, settings, dimension=dimension, max_length=max_length)


def causal_model(network: torch.nn.Module) -> CausalModel:
    """A loaded network with the attention that embeds without padding, where it takes that one, else with its own."""
    attention.register()
    base = base_of(network)
    try:
        base.set_attn_implementation(attention.NAME)
        model = CausalModel(network, layout="stream")
        check_attention(model, base.dtype, attention="causal")
    except (ValueError, ImportError, ModelError):
        base.set_attn_implementation(attention.stock_attention(base))
        model = CausalModel(network, layout="rows")
    return model
