"""Weighted averages of full models and of checkpoints, tensor by tensor in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from tailor.artifacts.base_model import Structure, forget_quantization, set_vocabulary
from tailor.artifacts.checkpoints import write_tokenizer
from tailor.artifacts.inputs import OTHER_ROPE, AverageInput, stores_plain_weights, trained_model
from tailor.artifacts.same_tokenizer import require_same_tokenizers
from tailor.artifacts.tensors import DTYPES, Reader, Writer, write_index
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG, MODEL_WEIGHTS, WEIGHTS
from tailor.models import files, rope, scoring_head
from tailor.models.own_code import granted
from tailor.plan import rope as plan_rope
from tailor.store import OBJECT, run_files
from tailor.store.scratch import scratch


def mean(readers: Sequence[Reader], name: str, shares: Sequence[float]) -> torch.Tensor:
    """The weighted mean of one tensor, in float32. Integer tensors are not averaged: ModelError when they differ."""
    tensors = [reader.read(name) for reader in readers]
    if not tensors[0].is_floating_point():
        if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
            raise ModelError(
                f"{name} has integers that differ between the inputs, and integers cannot be averaged"
            )
        return tensors[0]
    total = torch.zeros(tensors[0].shape)
    for tensor, share in zip(tensors, shares, strict=True):
        total += tensor.float() * share
    return total


def require_same(readers: Sequence[Reader], urls: Sequence[str]) -> None:
    """ModelError when the names or shapes of the tensors differ."""
    first = readers[0]
    for reader, url in zip(readers[1:], urls[1:], strict=True):
        odd = sorted(set(first) ^ set(reader))
        odd += [
            name for name in first if name in reader and first.about(name).shape != reader.about(name).shape
        ]
        if odd:
            shapes = [r.about(odd[0]).shape if odd[0] in r else "missing" for r in (first, reader)]
            raise ModelError(
                f"{urls[0]} and {url} have different tensors: {odd[0]} is {shapes[0]} and {shapes[1]}",
                hint="average models of the same architecture and size",
            )


def _require_same_rope(models: Sequence[Path]) -> None:
    """ModelError when the RoPE parameters in the models' config.json differ."""
    ropes = []
    for model in models:
        config = OBJECT.read_path(model / MODEL_CONFIG)
        config = {**config, **(config.get("text_config") or {})}
        own = dict(plan_rope.parameters_of(config))
        theta = own.pop("rope_theta", config.get("rope_theta"))
        kind = own.pop("rope_type", own.pop("type", "default"))
        ropes.append((kind, theta, own))
        if ropes[-1] != ropes[0]:
            raise ModelError(
                OTHER_ROPE.format(models[0], model), hint="average models with the same rope_parameters"
            )


def average_models(folder: Path, models: Sequence[Path], shares: Sequence[float]) -> None:
    """Write the average of model folders into `folder`, in the dtypes and files of the first. ModelError when they differ."""
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader.of_model(model)) for model in models]
        require_same(readers, [str(model) for model in models])
        _require_same_rope(models)
        total = 0
        for file, names in readers[0].layout.items():
            plan = {
                name: (DTYPES[readers[0].about(name).dtype], readers[0].about(name).shape) for name in names
            }
            with Writer(folder / file, plan) as writer:
                for name in names:
                    writer.write(name, mean(readers, name, shares).to(plan[name][0]))
            total += writer.bytes
        write_index(folder, readers[0].layout, total)


def average_checkpoints(folder: Path, parts: Sequence[AverageInput], shares: Sequence[float]) -> None:
    """Write the average of checkpoints of full fine-tuning into `folder`, as a float32 model in the layout of the base.

    ModelError when the checkpoints are of different models.
    """
    models = [trained_model(part.url, part.run, part.trust) for part in parts]
    if any(model.rope != models[0].rope for model in models):
        raise ModelError(
            OTHER_ROPE.format(parts[0].url, "others"), hint="average checkpoints with the same model.rope"
        )
    if any(model.add_tokens != models[0].add_tokens for model in models):
        raise ModelError(
            "the checkpoints have different model.add_tokens", hint="average checkpoints with the same tokens"
        )
    if any(model.path != models[0].path or model.revision != models[0].revision for model in models):
        raise ModelError(
            "the checkpoints have different base models: " + ", ".join(sorted({m.path for m in models})),
            hint="average checkpoints of one base model",
        )
    base = files.find_folder(
        models[0].path, models[0].revision, trust_remote_code=models[0].trust_remote_code
    )
    write_tokenizer(folder, base, parts[0].run, parts[0].trust)  # before the weights, because it may fail
    _require_same_tokenizers(folder, base, parts)
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader([part.folder / WEIGHTS])) for part in parts]
        require_same(readers, [part.url for part in parts])
        trained = {name.removeprefix("network."): name for name in readers[0]}
        scorer = base if run_files.ranks(parts[0].run) else None
        structure = Structure.of(base, trust_remote_code=granted(models[0]), scorer=scorer)
        frozen, base_reader = _frozen(structure, trained), None
        if frozen:
            if not stores_plain_weights(base):
                raise ModelError(
                    f"the checkpoints lack weights that text does not use, such as {frozen[0]}, and the base stores its weights "
                    "quantized, so they cannot be copied from it",
                    hint="average the models of the finished runs",
                )
            base_reader = stack.enter_context(Reader.of_model(base))
        plan = {name: (torch.float32, readers[0].about(own).shape) for name, own in trained.items()}
        for name in frozen:
            assert base_reader is not None
            plan[name] = (DTYPES[base_reader.about(name).dtype], base_reader.about(name).shape)
        with Writer(folder / MODEL_WEIGHTS, plan) as writer:
            for name, own in trained.items():
                writer.write(name, mean(readers, own, shares))
            for name in frozen:
                assert base_reader is not None
                writer.write(name, base_reader.read(name))
    if models[0].rope is not None:
        rope.save_config(folder, models[0])
    source = folder if models[0].rope is not None else base
    config = {**OBJECT.read_path(source / MODEL_CONFIG), "dtype": "float32"}
    config.pop("torch_dtype", None)
    forget_quantization(config)
    if scorer is not None:
        scoring_head.declare(config, structure.model)
    if models[0].add_tokens:
        set_vocabulary(config, plan[structure.embedding][1][0])
    (folder / MODEL_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _require_same_tokenizers(folder: Path, base: Path, parts: Sequence[AverageInput]) -> None:
    """ModelError when a run's tokenizer differs from that of the first, which is in `folder`."""
    runs = {part.run.url: part for part in parts}
    with scratch() as temporary:
        for number, part in enumerate(part for url, part in runs.items() if url != parts[0].run.url):
            own = temporary / str(number)
            own.mkdir()
            write_tokenizer(own, base, part.run, part.trust)
            require_same_tokenizers([folder, own], [parts[0].url, part.url])


def _frozen(structure: Structure, trained: dict[str, str]) -> list[str]:
    """The tensors that checkpoints leave out because text training does not use them, such as a vision tower."""
    tied = structure.tied or ()
    return [name for name in structure.model.state_dict() if name not in trained and name not in tied]
