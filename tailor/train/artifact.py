"""The final artifact, in the layout that plain peft and transformers read.

RUN/adapter/ (PEFT), RUN/model/ (Hugging Face) or RUN/beacon/ (this project's format). Each contains the tokenizer, the chat
template of the training data, and a generation_config whose stop token ends a turn. For an adapter trained with
`model.rope`, the folder also has the config.json to load the base with.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tailor.encode.published_embedder import text_format
from tailor.encode.tokenizer_files import fix_tokenizer_class
from tailor.layout import ADAPTER, BEACON, MODEL, MODEL_CONFIG
from tailor.models import adapter_files, prefix_lm, rope, scoring_head
from tailor.models.adapter_init import TRAINED, as_lora, as_lora_config
from tailor.models.attention import stock_attention
from tailor.models.base_record import BaseRecord
from tailor.models.beacon import files
from tailor.models.causal import base_of
from tailor.models.embedding.embedder import settings_of
from tailor.models.experts import attach
from tailor.models.load import DTYPES, skeleton
from tailor.plan import Plan
from tailor.spec.adapter import REPLACING
from tailor.store import OBJECT
from tailor.store.publication import Publication
from tailor.train import checkpoint
from tailor.train.session import Session

MAX_SHARD = "5GB"
"""Maximum size of one file of model weights."""


def write_artifact(session: Session) -> str:
    """Write and commit the artifact; returns its URL. Every rank calls it, rank 0 writes.

    Sharded weights are gathered one at a time and written to a temporary file each, so that the full model is never in
    memory. Raises StoreError if the disk is full.
    """
    strategy, plan = session.strategy, session.plan
    name = ADAPTER if plan.model.adapter else BEACON if plan.model.beacon else MODEL
    projection: dict[str, torch.Tensor] = {}
    weights = _without_projection(strategy.unsharded_weights(), projection)
    if session.host.rank != 0:
        for _ in weights:  # gathering a weight is a collective call
            pass
        return session.run.join(name).url
    assert session.tokenizer is not None
    with (
        Publication(session.run, name) as made,
        checkpoint.writing(f"the {name}", made.folder, "the last checkpoint"),
    ):
        if strategy.is_sharded:
            _write_gathered(session, made.folder, weights)
        elif name == ADAPTER:
            with _stock_attention(session):
                _write_adapter(session.model.network, plan, made.folder)
        elif name == BEACON:
            files.write(made.folder, session.model.base)
            BaseRecord.of(plan.model, plan.frozen_dtype).write(made.folder)
        else:
            dtype = DTYPES[plan.precision]  # the precision of training
            with _stock_attention(session):
                state = _in_dtype(session.model.network.state_dict(), dtype)
                _write_model(session.model.network, state, dtype, made.folder)
        _write_embedding(session, made.folder, projection)
        if plan.method.prefix_lm:
            prefix_lm.write(made.folder)
        session.tokenizer.write(made.folder, session.tokens.template)
        if plan.method.ranked_passages is not None:
            scoring_head.declare_inputs(session.model.base, plan.model, made.folder)
        if (warning := fix_tokenizer_class(made.folder)) is not None:
            session.say(f"warning: {warning}")
        session.host.flush()  # raises if another process owns the run by now
    return session.run.join(name).url


def _without_projection(
    weights: Iterable[tuple[str, torch.Tensor]], projection: dict[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the network's weights; put those of the embedding projection into the dict `projection` instead."""
    for name, value in weights:
        if name.startswith("projection."):
            projection[name.removeprefix("projection.")] = value
        else:
            yield name, value


def _write_embedding(session: Session, folder: Path, gathered: dict[str, torch.Tensor]) -> None:
    """Write the embedding settings if the method embeds. gathered: the projection's weights, if they are sharded."""
    plan, model = session.plan, session.model
    if plan.method.embedding is None:
        return
    weights = None if model.projection is None else gathered or model.projection.state_dict()
    format = text_format(plan.model.path, plan.model.revision)
    settings_of(model, plan.method.embedding, plan.batches.max_length, format).write(folder, weights)


def _write_gathered(session: Session, folder: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write weights that are gathered one at a time, through temporary files in the artifact's parent folder."""
    plan = session.plan
    network = skeleton(
        plan.model,
        precision=plan.precision,
        frozen_dtype=plan.frozen_dtype,
        activation_checkpointing=False,
        seed=plan.batches.seed,
        scores=plan.method.ranked_passages is not None,
    )
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=folder.parent) as temporary:
        if plan.model.adapter is not None:
            _write_adapter(network, plan, folder, spilled(weights, Path(temporary)))
        else:
            dtype = DTYPES[plan.precision]
            _write_model(network, spilled(weights, Path(temporary), dtype), dtype, folder)


def _write_adapter(
    network: Any, plan: Plan, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """weights: by name in `network`; None for those in `network`."""
    given = {"state_dict": as_lora(weights or network.state_dict())}
    network.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[TRAINED], **given)
    if scoring_head.is_scorer(base_of(network)):
        # PEFT adds the names of every class's head.
        saved = dict.fromkeys(adapter_files.read_config(folder)["modules_to_save"] or ())
        modules = [name for name, _ in base_of(network).named_modules()]
        known = [name for name in saved if any(f".{module}".endswith(f".{name}") for module in modules)]
        adapter_files.change_config(folder, modules_to_save=known)
    adapter_files.set_base(folder, plan.model.path)
    config = network.peft_config["default"]
    if isinstance(config.target_modules, set):
        # PEFT writes the set in an order that differs between processes.
        adapter_files.change_config(folder, **attach.for_peft(config, network.get_base_model()))
    if plan.model.adapter is not None and plan.model.adapter.init in REPLACING:
        adapter_files.change_config(folder, **as_lora_config(adapter_files.read_config(folder)))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card template
    BaseRecord.of(plan.model, plan.frozen_dtype).write(folder)
    if plan.model.rope is not None:
        rope.save_config(folder, plan.model)


def _write_model(network: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype, folder: Path) -> None:
    network.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_SHARD)
    _declare_dtype(folder / MODEL_CONFIG, dtype)


@contextmanager
def _stock_attention(session: Session) -> Iterator[None]:
    """Context in which the model has an attention of transformers: save_pretrained rejects `tailor_documents`."""
    base = session.model.base
    implementation = base.config._attn_implementation
    base.set_attn_implementation(stock_attention(base))
    try:
        yield
    finally:
        base.set_attn_implementation(implementation)


def _in_dtype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies in `dtype`, in host memory. Tied weights stay tied."""
    copies: dict[int, torch.Tensor] = {}
    return {
        name: copies.setdefault(weight.data_ptr(), weight.detach().to("cpu", dtype))
        for name, weight in weights.items()
    }


def _declare_dtype(config: Path, dtype: torch.dtype) -> None:
    """Set the dtype in config.json: transformers writes that of the weights in memory, not of those that it saves."""
    values = {**OBJECT.read_path(config), "dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(values, indent=2) + "\n")


def spilled(
    tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Copy tensors into memory-mapped temporary files in `folder`. Floating-point tensors are converted to `dtype`, if given.

    The tensors take disk space instead of memory: the system writes the pages out when it needs the memory. A file is
    deleted together with its tensor.
    """
    return {
        name: _in_file(tensor, folder, dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors
    }


def _in_file(tensor: torch.Tensor, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    if tensor.numel() == 0:
        return tensor.to(dtype)
    handle, path = tempfile.mkstemp(prefix=".spill-", dir=folder)
    os.close(handle)
    file = torch.from_file(path, shared=True, size=tensor.numel(), dtype=dtype)
    os.unlink(path)  # the memory map keeps the data until the tensor is freed
    return file.view(tensor.shape).copy_(tensor)
