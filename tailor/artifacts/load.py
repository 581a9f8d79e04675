"""A run's artefact, an adapter folder or a plain model folder, ready to answer."""

from __future__ import annotations

import difflib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailor.encode.template import Message
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.models.load import DTYPES, load_network
from tailor.spec.model import Model
from tailor.store import Store

ADAPTER, WHOLE = "adapter_config.json", "config.json"


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
                mend="continue a text with `tailor generate RUN --plain --prompt TEXT`",
            )

    def require_adapter(self) -> None:
        """ModelError when there is no adapter that could be left out."""
        if not hasattr(self.model, "disable_adapter"):
            raise ModelError(
                f"{self.tokenizer.name} is a whole model: it has no adapter beside whose base it could answer",
                mend="leave --base out, or chat with the base's own folder",
            )

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """A conversation up to where the model answers, rendered as in training."""
        self.require_template()
        return self.tokenizer.encode(self.tokenizer.render(messages, tools, add_generation_prompt=True))

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for, prompt and answer together."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)


def load_run(url: str) -> Loaded:
    """Load what `url` holds: a finished run, a folder with an adapter, or a folder with a model.

    An adapter is put onto its base as it was trained: quantised where the run declares it. Raises
    ModelError when there is no artefact, and when an adapter's base is not there or does not fit.
    """
    store, run = find_artifact(Store(url))
    folder = store.local_path()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = (_adapted if store.exists(ADAPTER) else _whole)(folder, store.url, run, device)
    tokenizer = load_tokenizer(str(folder))
    ends = model.generation_config.eos_token_id
    stops = [ends] if isinstance(ends, int) else list(ends or [])
    pads = [token for token in (tokenizer.pad_id, tokenizer.eos_id, 0) if token is not None]
    return Loaded(model.eval(), tokenizer, tuple(stops), pads[0])


def find_artifact(store: Store) -> tuple[Store, Store]:
    """The folder of the adapter or model, and the run's folder around it (where there is one). ModelError when there is none."""
    for below in ("adapter", "model"):
        if store.is_committed(below):
            return store.join(below), store
    if store.exists(ADAPTER) or store.exists(WHOLE):
        return store, Store(posixpath.dirname(store.url.rstrip("/")))
    if store.exists("recipe.yaml"):
        raise ModelError(
            f"the run at {store.url} is not finished: it has neither adapter/ nor model/",
            mend="run its recipe again, which goes on from the last checkpoint",
        )
    raise ModelError(f"{store.url} holds no run, no adapter and no model", mend=_near(store))


def _near(store: Store) -> str:
    parent, name = posixpath.split(store.url.rstrip("/"))
    near = difflib.get_close_matches(name, Store(parent).names(), n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(posixpath.join(parent, other) for other in near) + "?"
    return "`tailor runs` lists the runs below a folder"


def _whole(folder: Path, url: str, run: Store, device: torch.device) -> Any:
    return load_network(Model(path=str(folder)), dtype=_saved_dtype(folder), device=device)


def _saved_dtype(folder: Path) -> torch.dtype:
    """The dtype that a model folder's config.json names (older ones say `torch_dtype`)."""
    config = json.loads((folder / WHOLE).read_text()) if (folder / WHOLE).is_file() else {}
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)


def _adapted(folder: Path, url: str, run: Store, device: torch.device) -> Any:
    from peft import PeftModel
    from transformers import GenerationConfig

    plan = run.read_json("plan.json") if run.exists("plan.json") else None
    base = str(json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"])
    spec = Model.model_validate({**plan["model"], "path": base}) if plan else Model(path=base)
    dtype = DTYPES[plan["frozen_dtype"]] if plan else _saved_dtype(Path(base))
    try:
        network = load_network(spec, dtype=dtype, device=device)
    except ModelError as error:
        raise ModelError(
            f"the adapter at {url} needs its base model {base}, which could not be loaded: {error.message}",
            mend=f"bring the base back to {Path(base).absolute()}, or start from the folder where the run was started"
            if not Path(base).is_dir()
            else "the base must be the model that the adapter was trained on",
        ) from error
    try:
        model: Any = PeftModel.from_pretrained(network, str(folder))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the adapter at {url} does not fit its base model {base}: {' '.join(str(error).split())[:200]}",
            mend="the base must be the model that the adapter was trained on",
        ) from error
    # Written by a run; PEFT's own folders have none, and then the base model's counts.
    declared = (folder / "generation_config.json").is_file()
    model.generation_config = (
        GenerationConfig.from_pretrained(str(folder)) if declared else network.generation_config
    )
    return model
