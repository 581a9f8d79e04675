"""The base model of an adapter: its dtype and quantization in training, its files, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG
from tailor.models import adapter_files, files, quantization, scoring_head
from tailor.models.architecture import from_config
from tailor.models.base_record import BaseRecord
from tailor.models.experts.loading import quantizable
from tailor.models.experts.packed import Packed
from tailor.models.load import DTYPES
from tailor.models.own_code import Trust, untrusted
from tailor.spec.model import Model, Quantize
from tailor.store import OBJECT, Store, run_files


def base_record_of(folder: Path, run: Store) -> BaseRecord:
    """The base-model record (path, dtype, quantization) of the adapter in `folder`. run: the run that made it, if any.

    The path is taken from adapter_config.json, which the user may edit when the base moves.
    """
    config = adapter_files.read_config(folder)
    path, revision = str(config["base_model_name_or_path"]), config.get("revision")
    base_record = BaseRecord.read(folder)
    if base_record is not None:
        return replace(base_record, path=path)
    plan = run_files.plan_if_written(run)
    if not plan:
        return BaseRecord(path, revision, _stored_dtype(Path(path)), None, None)
    model = run_files.planned_model(run)
    return BaseRecord(
        path,
        model.revision,
        plan["frozen_dtype"],
        model.quantize,
        None,
        model.rope,
        model.add_tokens,
        model.dequantize,
    )


def model_spec(base_record: BaseRecord, trust: Trust) -> Model:
    """The `model` section that loads the base as in training."""
    return Model(
        path=base_record.path,
        revision=base_record.revision,
        quantize=base_record.quantize,
        dequantize=base_record.dequantize,
        rope=base_record.rope,
        add_tokens=base_record.add_tokens,
        trust_remote_code=trust.allows(base_record.path, base_record.revision),
    )


def planned_model(run: Store, trust: Trust) -> Model:
    """The `model` section of a run's plan. Its `trust_remote_code` is not the word of this command's user: `trust` decides."""
    model = run_files.planned_model(run)
    return model.model_copy(update={"trust_remote_code": trust.allows(model.path, model.revision)})


def _stored_dtype(folder: Path) -> str:
    return str(saved_dtype(folder)).removeprefix("torch.")


def saved_dtype(folder: Path) -> torch.dtype:
    """The dtype that a model folder's config.json names (older ones say `torch_dtype`)."""
    config = OBJECT.read_path(folder / MODEL_CONFIG) if (folder / MODEL_CONFIG).is_file() else {}
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)


@dataclass(frozen=True)
class Structure:
    """A model's modules without weights. Maps names of tensors in the files to those in the model."""

    model: Any
    """The transformers model, on the meta device."""

    @classmethod
    def of(cls, folder: Path, *, trust_remote_code: bool, scorer: Path | None = None) -> Structure:
        """Build it from the config.json in `folder`. ModelError when transformers does not know the model.

        scorer: a folder with the tokenizer of a reranker, for the class with a scoring head.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            if scorer is not None:
                scoring_head.configure(config, Model(path=str(scorer)))
            with torch.device("meta"):
                model = from_config(config, scores=scorer is not None, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            if (refusal := untrusted(str(folder), error)) is not None:
                raise refusal from error
            raise ModelError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}") from error
        model.tie_weights()
        return cls(model)

    def stored_name(self, name: str, stored: Any) -> str | None:
        """The name under which the files store the model's tensor `name`; None when they do not have it.

        stored: a container of the names in the files. Checkpoints of a base model without a head omit the prefix, such
        as `model.`.
        """
        prefix = f"{self.model.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in stored:
                return candidate
        return self._renamed(tuple(stored)).get(name)

    @cached_property
    def _renamed(self) -> Callable[[tuple[str, ...]], dict[str, str]]:
        """Names in files -> name in the model -> name in the files, as transformers renames them when it loads a model."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        found = get_model_conversion_mapping(self.model, add_legacy=False)
        renamings = [one for one in found if isinstance(one, WeightRenaming)]
        return lru_cache(maxsize=2)(
            lambda names: {rename_source_key(name, renamings, [])[0]: name for name in names}
        )

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The weights and buffers of the model by name, on the meta device."""
        return self.model.state_dict(keep_vars=True)

    def parts(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's tensor `name` as the files of transformers store it: by name, for example one matrix per expert."""
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self.model, {name: tensor})

    def whole(self, name: str, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of `parts`: the model's tensor `name` from the tensors of the files, by their names there."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        transforms = get_model_conversion_mapping(self.model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        known, prefix = dict.fromkeys(self.parameters), self.model.base_model_prefix
        join: Any = None
        for part in sorted(stored, key=dot_natural_key):
            full, pattern = rename_source_key(part, renamings, converters, prefix, known)
            if pattern is None:  # only another name
                return stored[part]
            join = join or deepcopy(next(each for each in converters if pattern in each.source_patterns))
            join.add_tensor(full, part, pattern, stored[part])
        made = join.convert(name, model=self.model, config=self.model.config)[name]
        tensor: torch.Tensor = made[0] if isinstance(made, list) else made
        return tensor

    def read(self, name: str, reader: Any) -> torch.Tensor:
        """The model's tensor `name` from the files."""
        stored = {part: reader.read(part) for part in self.stored_names(name, reader)}
        return stored[next(iter(stored))] if self.stored_name(name, reader) else self.whole(name, stored)

    def stored_names(self, name: str, stored: Any) -> list[str]:
        """As `stored_name`, of all tensors that the model's tensor `name` is made of; empty when one is not in the files."""
        if (whole := self.stored_name(name, stored)) is not None:
            return [whole]
        if name not in self.parameters:
            return []
        found = [self.stored_name(part, stored) for part in self.parts(name, self.parameters[name].detach())]
        return [part for part in found if part is not None] if None not in found else []

    @property
    def embedding(self) -> str:
        """Name of the embedding's weight."""
        embedding = self.model.get_input_embeddings()
        return next(f"{name}.weight" for name, module in self.model.named_modules() if module is embedding)

    @cached_property
    def tied(self) -> tuple[str, str] | None:
        """Names of the embedding's and the head's weight where they are one."""
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if head is None or embedding.weight is not head.weight:
            return None
        names = {id(module): name for name, module in self.model.named_modules()}
        return f"{names[id(embedding)]}.weight", f"{names[id(head)]}.weight"

    def is_transposed(self, module: str) -> bool:
        """Whether the weight is [in, out] instead of [out, in]: GPT-2's Conv1D, and embeddings."""
        from transformers.pytorch_utils import Conv1D

        return isinstance(self.model.get_submodule(module), Conv1D | torch.nn.Embedding)

    def quantized(self, spec: Quantize, dtype: torch.dtype) -> set[str]:
        """The names of the weights that bitsandbytes quantizes when the model is loaded with `spec`."""
        from transformers.quantizers import AutoHfQuantizer

        stacked = {stack.name for stack in quantizable(self.model)}
        before = {name: type(module) for name, module in self.model.named_modules()}
        settings = quantization.settings_of(self.model, spec, dtype)  # as when the model is loaded
        quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
        quantizer._process_model_before_weight_loading(self.model, device_map=None)
        return stacked | {
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if type(module) is not before[name]
        }


def set_vocabulary(config: dict[str, Any], size: int) -> None:
    """Set the number of rows of the embedding in a config.json."""
    text = config.get("text_config")
    if isinstance(text, dict):
        text["vocab_size"] = size
    if not isinstance(text, dict) or "vocab_size" in config:
        config["vocab_size"] = size


def forget_quantization(config: dict[str, Any]) -> None:
    """Remove the quantization of the base's stored weights from a config.json, for a model with plain weights."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part.pop("quantization_config", None)


def as_quantized(weight: torch.Tensor, spec: Quantize, device: torch.device) -> torch.Tensor:
    """Quantize a weight [out, in], or a stack of experts, and dequantize it again, in its own dtype."""
    import bitsandbytes as bnb

    if weight.ndim == 3:
        return Packed.of(weight.to(device), spec).dequantized()
    if spec.type == "int8":
        packed = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        return bnb.functional.int8_vectorwise_dequant(packed.data, packed.SCB).to(weight.dtype)
    packed = bnb.nn.Params4bit(
        weight.to(device), requires_grad=False, quant_type=spec.type, compress_statistics=spec.double
    ).to(device)
    return bnb.functional.dequantize_4bit(packed.data, packed.quant_state)


def base_folder(base_record: BaseRecord, url: str, spec: Model) -> Path:
    """The local folder with the base's files. ModelError when it cannot be found."""
    try:
        return files.find_folder(
            base_record.path, base_record.revision, trust_remote_code=spec.trust_remote_code
        )
    except ModelError as error:
        raise ModelError(
            f"the adapter at {url} needs its base model {base_record.path}: {error.message}",
            hint=f"restore it at {Path(base_record.path).absolute()}, or give its new path with --base",
        ) from error
