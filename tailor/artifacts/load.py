"""Loads the artifact of a run, an adapter folder or a model folder for inference."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tailor.artifacts.base_model import base_record_of, model_spec, saved_dtype
from tailor.artifacts.find import find_artifact, refuse_reranker
from tailor.encode.prompts import continuation_text, render_prompt
from tailor.encode.replies.reading import read
from tailor.encode.replies.reply import Reply
from tailor.encode.template import Message
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BEACON_CONFIG,
    GENERATION_CONFIG,
)
from tailor.models import adapter_files, prefix_lm, scoring_head
from tailor.models.adapter_files import check_weights
from tailor.models.base_record import BaseRecord
from tailor.models.beacon import files as beacon_files
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import base_of
from tailor.models.decoder import has_head
from tailor.models.experts import attach, low_rank
from tailor.models.files import find_folder
from tailor.models.load import DTYPES, load_network
from tailor.models.own_code import NOTHING, Trust, UntrustedCodeError
from tailor.models.positions import positions_of
from tailor.spec.adapter_kinds import KINDS, known
from tailor.spec.model import Model
from tailor.store import COMMIT, Store, verify

HASHED_BYTES = 1 << 30
"""Artifacts up to this size are verified by checksum, which takes about a second; larger ones by file size."""


@dataclass(frozen=True)
class Loaded:
    """A loaded model with its saved tokenizer and stop tokens."""

    model: Any
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    pad_id: int

    def require_template(self) -> None:
        """ModelError when the model was saved without a chat template."""
        if self.tokenizer.template is None:
            raise ModelError(
                f"{self.tokenizer.name} has no chat template, so it cannot chat",
                hint="complete plain text with `tailor generate RUN --plain --prompt TEXT`",
            )

    def require_adapter(self) -> None:
        """ModelError when the model has neither an adapter nor beacons that can be disabled."""
        if not hasattr(self.model, "disable_adapter") and beacons_of(self.model) is None:
            raise ModelError(
                f"{self.tokenizer.name} is a full model: there is no adapter to disable, so the answers of its base are not available",
                hint="remove --base, or give the folder of the base model",
            )

    def without_adapter(self) -> AbstractContextManager[Any]:
        """A context in which the adapter or the beacons are disabled, so that the base answers."""
        beacons = beacons_of(self.model)
        context = ExitStack()
        context.enter_context(prefix_lm.disabled(base_of(self.model)))
        context.enter_context(self.model.disable_adapter() if beacons is None else beacons.disabled())
        return context

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of a conversation up to the model's answer, rendered as in training.

        ModelError without a template, TemplateError when the template drops a part of the conversation.
        """
        self.require_template()
        return self.tokenizer.encode(render_prompt(self.tokenizer, messages, tools))

    def reply(self, prompt: Sequence[int], ids: Sequence[int], *, tools: bool = False) -> Reply:
        """What a generated answer to a conversation says. tools: whether the conversation has tools."""
        return read(self.tokenizer, prompt, ids, tools=tools)

    def continuation_text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text by which a generated answer continues a plain prompt."""
        return continuation_text(self.tokenizer, prompt, ids)

    @property
    def context(self) -> int | None:
        """The maximum number of tokens, prompt and answer together; None when the configuration has no limit."""
        return positions_of(self.model)


def load_run(
    url: str, device: str | None = None, *, trust: Trust = NOTHING, without_rope: bool = False
) -> Loaded:
    """Load a finished run, an adapter folder or a model folder.

    device: by default a GPU if there is one. An adapter's base is loaded as in training, with the same quantization.
    trust: the model's own code that may run. without_rope: load the base of an adapter without `model.rope`.
    Raises ModelError when there is no artifact, when the base of an adapter is missing or does not fit, and for an encoder,
    which cannot generate; StoreError when a file of the artifact is missing or has changed.
    """
    return for_generation(url, *load_artifact(url, device, trust=trust, without_rope=without_rope))


def for_generation(url: str, model: Any, tokenizer: Tokenizer) -> Loaded:
    """A loaded network with its tokenizer and stop tokens. ModelError for an encoder. url: for messages."""
    if not has_head(base_of(model)):
        raise ModelError(
            f"{url} is an encoder ({base_of(model).config.model_type}), which embeds texts and cannot generate",
            hint="use it with `tailor embed`, `tailor search` and `tailor evaluate` with the task retrieval",
        )
    return _loaded(model, tokenizer, model.generation_config)


def _loaded(model: Any, tokenizer: Tokenizer, generation_config: Any) -> Loaded:
    ends = generation_config.eos_token_id
    stops = [ends] if isinstance(ends, int) else list(ends or [])
    pads = [token for token in (tokenizer.pad_id, tokenizer.eos_id, 0) if token is not None]
    return Loaded(model, tokenizer, tuple(stops), pads[0])


def load_artifact(
    url: str, device: str | None = None, *, trust: Trust = NOTHING, without_rope: bool = False
) -> tuple[Any, Tokenizer]:
    """The model of a run, an adapter folder or a model folder, and its tokenizer. As `load_run`, also for an encoder."""
    store, run = find_artifact(Store(url))
    folder = _verified(store)
    target_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    refuse_reranker(store)
    if store.exists(ADAPTER_CONFIG):
        record = base_record_of(folder, run)
        record = replace(record, rope=None) if without_rope else record
        model = load_adapted(folder, store.url, record, model_spec(record, trust), target_device)
    else:
        load = _with_beacons if store.exists(BEACON_CONFIG) else _whole
        model = load(folder, store.url, target_device, trust)
    if prefix_lm.is_saved(folder, store.url):
        prefix_lm.enable(base_of(model))
    return model.eval(), load_tokenizer(str(folder))


def load_beside(loaded: Loaded, url: str, name: str) -> Loaded:
    """Load one more adapter onto the base of a loaded one, where PEFT knows it by `name`. The active adapter stays the same.

    ModelError when it does not fit. The caller makes sure that both adapters were trained on equal bases.
    """
    from safetensors import SafetensorError

    store, _ = find_artifact(Store(url))
    folder = _verified(store)
    check_weights(folder, store.url)
    _check_peft(folder, store.url)
    try:
        loaded.model.load_adapter(str(folder), adapter_name=name)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter at {url} cannot be loaded beside another one: {' '.join(str(error).split())[:200]}",
            hint="merge it into its base (`tailor merge`), and use the merged model",
        ) from error
    loaded.model.eval()
    config = _declared_generation(folder) or base_of(loaded.model).generation_config
    return _loaded(loaded.model, load_tokenizer(str(folder)), config)


def _verified(store: Store) -> Path:
    """The local folder of an artifact. StoreError when a file is missing or has changed since the run wrote it."""
    folder = store.local_path()
    if store.exists(COMMIT):
        parent, name = posixpath.split(store.url.rstrip("/"))
        verify(Store(parent), name, folder, hashed_bytes=HASHED_BYTES)
    return folder


def _declared_generation(folder: Path) -> Any:
    """The generation_config.json of an artifact. Runs write one; adapter folders that PEFT wrote have none."""
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(str(folder)) if (folder / GENERATION_CONFIG).is_file() else None


def _whole(folder: Path, url: str, device: torch.device, trust: Trust) -> Any:
    spec = Model(path=str(folder), trust_remote_code=trust.allows(str(folder)))
    return load_network(spec, dtype=saved_dtype(folder), device=device)


def _with_beacons(folder: Path, url: str, device: torch.device, trust: Trust) -> Any:
    from transformers import GenerationConfig

    base_record = BaseRecord.read(folder)
    if base_record is None:
        raise ModelError(
            f"the beacons at {url} have no base.json, the file with the path of their base model",
            hint="restore the file from the run",
        )
    network = _base_of("beacons", url, base_record, model_spec(base_record, trust), device)
    beacon_files.load_beacons(network, folder, url)
    network.generation_config = GenerationConfig.from_pretrained(str(folder))
    return network


def load_adapted(folder: Path, url: str, base_record: BaseRecord, spec: Model, device: torch.device) -> Any:
    """Load the adapter in `folder` on its base as in training (a PeftModel), with a scoring head if it is of a reranker.

    url: for messages. ModelError when it fails."""
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    check_weights(folder, url)
    base = base_record.path
    _check_peft(folder, url)
    scores = scoring_head.is_adapter(adapter_files.read_config(folder))
    network = _base_of("adapter", url, base_record, spec, device, scores=scores)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        attach.from_peft(config, network)
        with attach.as_named(network):
            model: Any = PeftModel.from_pretrained(network, str(folder), config=config)
        low_rank.install(model)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter at {url} does not fit its base model {base}: {' '.join(str(error).split())[:200]}",
            hint="the base must be the model that the adapter was trained on",
        ) from error
    if not has_head(network):
        return model
    model.generation_config = _declared_generation(folder) or network.generation_config
    return model


def _check_peft(folder: Path, url: str) -> None:
    """ModelError for an adapter that PEFT would load from pickles, or with settings that load tokenizers or packages."""
    config = adapter_files.read_config(folder)
    kind = known(config.get("peft_type"))
    if kind is None or config.get("megatron_config"):
        label = config.get("peft_type") if kind is None else f"{kind.label} with Megatron"
        raise ModelError(
            f"the adapter at {url} is of the type {label}; supported are "
            f"{', '.join(each.label for each in KINDS.values())}",
            hint="merge it into its base with PEFT, and use the merged model",
        )
    adapter_files.check_init(config, url)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"the adapter at {url} has no {ADAPTER_WEIGHTS}; weights in pickle files (.bin) are not loaded",
            hint="save the adapter as safetensors",
        )


def _base_of(
    what: Literal["adapter", "beacons"],
    url: str,
    base_record: BaseRecord,
    spec: Model,
    device: torch.device,
    *,
    scores: bool = False,
) -> Any:
    """Load the base of the adapter or beacons at `url` as in training. ModelError when it is missing or another model."""
    base = base_record.path
    needs = f"the adapter at {url} needs its" if what == "adapter" else f"the beacons at {url} need their"
    moved = f"restore it at {Path(base).absolute()} (a symbolic link works)"
    try:
        found = find_folder(base, base_record.revision, trust_remote_code=spec.trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{needs} base model {base}: {error.message}", hint=moved) from error
    base_record.check(found, url, hint=moved)
    try:
        return load_network(spec, dtype=DTYPES[base_record.dtype], device=device, scores=scores)
    except UntrustedCodeError:
        raise
    except ModelError as error:
        raise ModelError(
            f"{needs} base model {base}, which cannot be loaded: {error.message}",
            hint=f"the base must be the model that the {what} {'was' if what == 'adapter' else 'were'} trained on",
        ) from error
