"""Loads several runs together: adapters of equal bases on one copy of the base, everything else on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tailor.artifacts.base_model import base_record_of
from tailor.artifacts.cross_encoder import CrossEncoderModel, find_cross_encoder
from tailor.artifacts.find import find_artifact, refuse_reranker
from tailor.artifacts.load import Loaded, load_beside, load_run
from tailor.artifacts.load_embedder import load_embedder, load_with_embedder
from tailor.artifacts.long_prompts import PromptRetrieval, prompt_retrieval
from tailor.encode.model_files import load_config
from tailor.layout import ADAPTER_CONFIG, EMBEDDING, GENERATIVE_ATTENTION
from tailor.models.adapter_files import read_config
from tailor.models.embedding.embedder import Embedder
from tailor.models.own_code import NOTHING, Trust
from tailor.plan import encoders
from tailor.spec.suite import BASE
from tailor.store import Store

_FIRST = "default"
"""PEFT's name of the adapter that a model is loaded with."""


@dataclass
class Network:
    """A model in memory. adapters: number of adapters on it."""

    model: Any = None
    adapters: int = 0
    active: str | None = _FIRST

    @contextmanager
    def with_adapter(self, name: str | None) -> Iterator[None]:
        """Context in which this adapter answers; None: the base alone. For a model without adapters nothing changes."""
        if not self.adapters:
            yield
        elif name is None:
            with self.model.disable_adapter():
                yield
        else:
            if self.active != name:
                self.model.set_adapter(name)
                self.active = name
            yield


@dataclass
class LoadedRun:
    """A run that is ready to answer. name: by which requests name it. adapter: its name in PEFT, None for a model without.

    generator, embedder, reranker: what it can do; the others are None. retrieval: how it shortens long prompts, if it does.
    """

    name: str
    network: Network
    adapter: str | None = None
    generator: Loaded | None = None
    embedder: Embedder | None = None
    reranker: CrossEncoderModel | None = None
    retrieval: PromptRetrieval | None = None


def load_together(urls: Mapping[str, str], *, trust: Trust = NOTHING) -> list[LoadedRun]:
    """Load runs (name -> folder) for inference, in order, and the base of adapters beside them as `base`.

    Adapters whose bases were loaded equally in training (weights, dtype, quantization, RoPE, new tokens) share one copy of
    it. Raises ModelError and StoreError as `load_run` does, before anything is loaded for an unknown folder.
    """
    found = {name: _kind(url) for name, url in urls.items()}
    retrievals = {name: prompt_retrieval(url) for name, url in urls.items()}
    shared: list[tuple[Any, LoadedRun]] = []
    runs: list[LoadedRun] = []
    for name, url in urls.items():
        record = found[name]
        first = next((run for known, run in shared if record is not None and known == record), None)
        if first is not None:
            runs.append(_on_the_base_of(first, name, url))
            continue
        run = _load(name, url, trust)
        if record is not None and run.network.adapters:
            shared.append((record, run))
        runs.append(run)
    if len(shared) == 1 and BASE not in urls:
        _, first = shared[0]
        runs.append(LoadedRun(BASE, first.network, None, first.generator))
        retrievals[BASE] = retrievals[first.name]
    for run in runs:
        run.retrieval = retrievals[run.name]
    return runs


def _kind(url: str) -> Any:
    """What equal bases and kinds of adapters have in common, for an adapter that can share its base; None for everything else.

    ModelError when there is no model at `url`.
    """
    if _is_reranker(url):
        return None
    store, run = find_artifact(Store(url))
    refuse_reranker(store)
    alone = any(store.exists(name) for name in (EMBEDDING, GENERATIVE_ATTENTION))
    if alone or not store.exists(ADAPTER_CONFIG):
        return None
    folder = store.local_path()
    return base_record_of(folder, run), read_config(folder).get("peft_type")


def _load(name: str, url: str, trust: Trust) -> LoadedRun:
    if _is_reranker(url):
        return LoadedRun(name, Network(), reranker=CrossEncoderModel(Store(url).url))
    store, _ = find_artifact(Store(url))
    if store.exists(EMBEDDING):
        if encoders.is_encoder(_base_config(store)):
            embedder = load_embedder(url, trust=trust)
            return LoadedRun(name, Network(embedder.model.network), embedder=embedder)
        generator, embedder = load_with_embedder(url, trust=trust)
        return LoadedRun(name, Network(generator.model), generator=generator, embedder=embedder)
    loaded = load_run(url, trust=trust)
    adapters = int(hasattr(loaded.model, "disable_adapter"))
    return LoadedRun(name, Network(loaded.model, adapters), _FIRST if adapters else None, loaded)


def _on_the_base_of(first: LoadedRun, name: str, url: str) -> LoadedRun:
    """Load the adapter of a run beside the one of `first`."""
    assert first.generator is not None
    network = first.network
    adapter = f"adapter-{network.adapters}"
    loaded = load_beside(first.generator, url, adapter)
    network.adapters += 1
    return LoadedRun(name, network, adapter, loaded)


def _is_reranker(url: str) -> bool:
    """Whether a folder has a cross-encoder. A name that is no folder is not looked for on the Hugging Face Hub."""
    store = Store(url)
    return store.exists() and find_cross_encoder(store.url) is not None


def _base_config(store: Store) -> Mapping[str, Any]:
    """The config.json of a model, or of the base of an adapter."""
    folder = store.local_path()
    if not store.exists(ADAPTER_CONFIG):
        return load_config(str(folder))
    config = read_config(folder)
    return load_config(str(config["base_model_name_or_path"]), config.get("revision"))
