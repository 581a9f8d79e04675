"""The scoring head of a reranker: transformers' sequence classification with one label, whose logit is a pair's score.

An encoder's head reads its first token or its pooler; that of a decoder reads the last token that is not padding. Another head,
such as one that classifies, would be a module beside this one.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tailor.encode import pair_template
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.layout import CHAT_TEMPLATE, TOKENIZER_CONFIG
from tailor.plan import encoders
from tailor.spec.model import Model
from tailor.store import OBJECT

if TYPE_CHECKING:
    from tailor.models.documents import TokenBatch

_CLASS = "ForSequenceClassification"
TASK = "SEQ_CLS"
"""PEFT's name of the task of an adapter on a model with such a head."""
_LABELS = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
"""One label, without the name that another head gave it."""


def configure(config: Any, spec: Model) -> None:
    """Give a transformers config one label, and a decoder's the padding token of its tokenizer.

    ModelError if transformers has no such class for the model, or its tokenizer nothing to pad with.
    """
    from transformers import AutoModelForSequenceClassification

    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"model.path {spec.path}: transformers has no class with a scoring head for {config.model_type}",
            hint="use another base model, such as an encoder (BERT, ModernBERT) or a decoder (Llama, Qwen3, Gemma)",
        )
    config.num_labels = 1
    config.id2label, config.label2id = dict(_LABELS["id2label"]), dict(_LABELS["label2id"])
    if not encoders.is_encoder(config.to_dict()):
        tokenizer = load_tokenizer(spec.path, spec.revision)
        config.get_text_config().pad_token_id = pair_template.padding_id(tokenizer)


def declare(config: dict[str, Any], base: Any) -> None:
    """Write into the `config.json` of a base model what its config has with a head. base: the network with it."""
    config |= {key: base.config.to_dict()[key] for key in _LABELS}
    config["architectures"] = [type(base).__name__]
    if not encoders.is_encoder(config):
        part = config["text_config"] if isinstance(config.get("text_config"), dict) else config
        part["pad_token_id"] = base.config.get_text_config().pad_token_id


def is_scorer(base: Any) -> bool:
    """Whether a transformers model has a scoring head."""
    return type(base).__name__.endswith(_CLASS)


def is_declared(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` names such a class, with any number of labels. TypeError if it is damaged."""
    return any(str(name).endswith(_CLASS) for name in config.get("architectures") or ())


def is_adapter(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is of an adapter on a model with such a head."""
    return config.get("task_type") == TASK


def modules_of(base: Any) -> nn.ModuleList:
    """The modules of the scoring head: all that are not the encoder, and the encoder's pooler, which only the head reads."""
    encoder = base.base_model
    pooler = getattr(encoder, "pooler", None)
    return nn.ModuleList(
        [
            *(child for child in base.children() if child is not encoder),
            *([pooler] if pooler is not None else []),
        ]
    )


def names_of(base: Any) -> list[str]:
    """The last parts of the names of the head's modules with weights."""
    own = [module for module in modules_of(base) if any(True for _ in module.parameters())]
    return [name.rsplit(".", 1)[-1] for name, module in base.named_modules() if module in own]


def weights_of(base: Any) -> set[str]:
    """The names of the head's weights."""
    own = {id(parameter) for parameter in modules_of(base).parameters()}
    return {name for name, parameter in base.named_parameters() if id(parameter) in own}


def reads_types(base: Any) -> bool:
    """Whether the model has several token types."""
    taken = "token_type_ids" in inspect.signature(type(base).forward).parameters
    return taken and (base.config.to_dict().get("type_vocab_size") or 0) > 1


def declare_inputs(base: Any, spec: Model, folder: Path) -> None:
    """Write into the saved tokenizer what the model gets in training, so that other programs give it the same: its inputs (not
    every class of transformers' tokenizers makes token types), and a decoder's padding, on the right, and template for pairs.

    A chat template is removed: sentence-transformers would make a conversation of each pair.
    """
    file = folder / TOKENIZER_CONFIG
    names = ["input_ids", *(["token_type_ids"] if reads_types(base) else []), "attention_mask"]
    settings = {**OBJECT.read_path(file), "model_input_names": names}
    settings.pop("chat_template", None)
    (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
    tokenizer = load_tokenizer(spec.path, spec.revision)
    if not encoders.is_encoder(base.config.to_dict()):
        settings |= {
            "pad_token": tokenizer.token(base.config.get_text_config().pad_token_id),
            "padding_side": "right",
        }
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    pair_template.declare(tokenizer, folder)


def scores(base: Any, batch: TokenBatch, **options: Any) -> torch.Tensor:
    """The score of each pair of a micro-batch in padded rows, float32[D], with a graph. options: further ones of the model."""
    assert batch.pairs is not None
    mask = batch.token_document >= 0  # bool[D, T]
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": mask.long()}
    config = base.config.to_dict()
    if not encoders.is_encoder(config):
        padding = base.config.get_text_config().pad_token_id
        inputs |= {"input_ids": batch.input_ids.masked_fill(~mask, padding), "use_cache": False}
    if "position_ids" in inspect.signature(type(base.base_model).forward).parameters:
        inputs["position_ids"] = batch.position_ids + encoders.first_position(config)
    if reads_types(base):
        inputs["token_type_ids"] = batch.pairs.token_types
    logits: torch.Tensor = base(**inputs, **options).logits  # [D, 1]
    return logits.squeeze(-1).float()


def scores_to_train(base: Any, batch: TokenBatch, **options: Any) -> tuple[torch.Tensor, Any]:
    """The scores, and the output of the decoder, of which transformers' class returns no logits of routers."""
    outputs: list[Any] = []
    hook = base.base_model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        return scores(base, batch, **options), outputs[0]
    finally:
        hook.remove()
