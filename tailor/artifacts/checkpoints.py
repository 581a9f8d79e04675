"""Reads checkpoints: gathers sharded weights into one file, and writes the adapter as the run would at that step."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import torch

from tailor.artifacts import output, stacked
from tailor.artifacts.base_model import Structure, planned_model
from tailor.artifacts.lora import ROWS
from tailor.artifacts.saved_adapter import PREFIX
from tailor.artifacts.tensors import Reader, Writer
from tailor.data.token_store import TokenStore, is_readable
from tailor.encode.tokenizer_files import Original, own_files
from tailor.errors import ModelError
from tailor.layout import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    GENERATIVE_ATTENTION,
    MODEL,
    MODEL_CONFIG,
    RECIPE,
    WEIGHTS,
)
from tailor.models import files, prefix_lm, rope, scoring_head
from tailor.models.adapter_files import write_config
from tailor.models.adapter_init import as_lora, as_lora_config
from tailor.models.adapters import adapter_name, names_in_full, peft_config, task_of
from tailor.models.base_record import BaseRecord
from tailor.models.experts import attach
from tailor.models.experts.stacks import Stack
from tailor.models.new_tokens import new_tokens
from tailor.models.own_code import Trust, granted
from tailor.plan import encoders
from tailor.plan.facts import ModelFacts
from tailor.plan.outline import is_within
from tailor.spec.adapter import REPLACING
from tailor.spec.model import Model
from tailor.store import OBJECT, Store, run_files
from tailor.train import sharded_checkpoint


def in_one_file(weights: Path, scratch: Path) -> Path:
    """The folder with a checkpoint's weights in one file: `weights` itself, or `scratch` for a sharded checkpoint."""
    if not sharded_checkpoint.is_sharded(weights):
        return weights
    scratch.mkdir(parents=True)
    with sharded_checkpoint.ShardedReader(weights) as saved:
        layout = {name: (torch.float32, shape) for name, shape in saved.shapes.items()}
        with Writer(scratch / WEIGHTS, layout) as writer:
            for name, tensor in saved.weights():
                writer.write(name, tensor)
    return scratch


def write_adapter(folder: Path, weights: Path, run: Store, trust: Trust) -> None:
    """Write the adapter of a checkpoint of `run` into `folder`. weights: the folder with the checkpoint's weights."""
    plan = run_files.plan(run)
    model = planned_model(run, trust)
    spec = model.adapter
    assert spec is not None
    if spec.type == "vera":
        raise ModelError(
            f"a checkpoint of {run.url} lacks the random matrices of its VeRA adapter",
            hint="give the finished run",
        )
    base = files.find_folder(model.path, model.revision, trust_remote_code=model.trust_remote_code)
    scores, config_of_base = run_files.ranks(run), OBJECT.read_path(base / MODEL_CONFIG)
    mixture = ModelFacts.from_config(config_of_base).experts > 1
    stacks: list[Stack] = []
    in_full, network = list(spec.modules_to_save), None
    folder.mkdir(parents=True)
    with Reader([weights / WEIGHTS]) as reader:
        saved = as_lora({name: reader.read(name) for name in reader})
    names = {adapter_name(name): tensor for name, tensor in saved.items()}
    if scores or mixture:
        structure = Structure.of(base, trust_remote_code=granted(model), scorer=base if scores else None)
        network = structure.model
        stacks, in_full = attach.chosen_stacks(network, spec), names_in_full(network, spec)
        names |= _frozen(structure, base, attach.chosen_routers(network, spec), names)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in names.items()}
    with Writer(folder / ADAPTER_WEIGHTS, layout) as writer:
        for name, tensor in names.items():
            writer.write(name, tensor)
    update = re.compile(rf"\.({spec.kind.tensors})\b")
    modules = {update.split(name)[0].removeprefix(PREFIX) for name in names if update.search(name)}
    wrapped = {stack.module for stack in stacks}
    settings = peft_config(
        spec,
        sorted(name for name in modules if stacked.unwrapped(name) not in wrapped),
        parameters=attach.shortest(network, stacks) if network is not None else (),
        rows=_trained_rows(names, model),
        in_full=in_full,
        task=task_of(generates=not encoders.is_encoder(config_of_base), scores=scores),
    )
    targets = attach.for_peft(settings, network) if mixture else {}
    config = {**json.loads(json.dumps(settings.to_dict(), default=sorted)), **targets}
    config |= {"base_model_name_or_path": model.path, "revision": model.revision, "inference_mode": True}
    write_config(folder, {**config, **(as_lora_config(config) if spec.init in REPLACING else {})})
    weights_of_base = files.fingerprint(base)
    base_record = BaseRecord(
        model.path,
        model.revision,
        plan["frozen_dtype"],
        model.quantize,
        weights_of_base,
        model.rope,
        model.add_tokens,
        model.dequantize,
    )
    base_record.write(folder)
    if model.rope is not None:
        rope.save_config(folder, model)
    write_tokenizer(folder, base, run, trust)


def _frozen(
    structure: Structure, base: Path, routers: Sequence[str], names: Container[str]
) -> dict[str, torch.Tensor]:
    """Tensors of trained routers that are not trained themselves, by their names in the adapter. names: of those that are."""
    found = {f"{PREFIX}{name}": name for name in structure.parameters if is_within(name, routers)}
    missing = {saved: name for saved, name in found.items() if saved not in names}
    if not missing:
        return {}
    with Reader.of_model(base) as reader:
        return {saved: structure.read(name, reader).float() for saved, name in missing.items()}


def _trained_rows(names: Iterable[str], model: Model) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`. names: of the adapter's tensors."""
    tables = [name.removesuffix(ROWS).removeprefix(PREFIX) for name in names if name.endswith(ROWS)]
    return {table: list(new_tokens(model)) for table in sorted(tables)} or None


def write_tokenizer(folder: Path, base: Path, run: Store, trust: Trust) -> None:
    """Write tokenizer, template and stop tokens as in the run's artifact.

    For an unfinished run they come from its prepared tokens. ModelError when those are gone too.
    """
    made = next((kind for kind in (ADAPTER, MODEL) if run.is_committed(kind)), None)
    if made is not None:
        output.copy_texts(run.join(made).local_path(), folder, but=(BASE_RECORD, MODEL_CONFIG))
    else:
        plan = run_files.plan(run)
        if not is_readable(plan["tokens_url"]):
            raise ModelError(
                f"the run at {run.url} is not finished, and its prepared tokens at {plan['tokens_url']}, which have the chat "
                "template and the stop tokens, are gone",
                hint=f"prepare them again: tailor data report {run.url}/{RECIPE}",
            )
        template = TokenStore.open(plan["tokens_url"]).template
        model = planned_model(run, trust)
        Original.open(model, trust_remote_code=granted(model)).write(folder, template)
        if run_files.ranks(run):
            scorer = Structure.of(base, trust_remote_code=granted(model), scorer=base).model
            scoring_head.declare_inputs(scorer, model, folder)
        if plan["method"].get("generative_attention") == "prefix_lm":
            prefix_lm.write(folder)
    # What the base says about its attention does not apply after training.
    output.copy_texts(base, folder, but=(MODEL_CONFIG, GENERATIVE_ATTENTION, *own_files(folder)))
