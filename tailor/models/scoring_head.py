"""The scoring head of a reranker: transformers' sequence classification with one label, whose logit is a pair's score.

Another head, such as one that classifies, would be a module beside this one.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tailor.layout import TOKENIZER_CONFIG
from tailor.plan import encoders
from tailor.store import OBJECT

if TYPE_CHECKING:
    from tailor.models.documents import TokenBatch

_CLASS = "ForSequenceClassification"


def configure(config: Any) -> None:
    """Give a transformers config one label, without the name that another head gave it."""
    config.num_labels = 1
    config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}


def is_scorer(base: Any) -> bool:
    """Whether a transformers model has a scoring head."""
    return type(base).__name__.endswith(_CLASS)


def is_declared(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` names such a class, with any number of labels. TypeError if it is damaged."""
    return any(str(name).endswith(_CLASS) for name in config.get("architectures") or ())


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


def weights_of(base: Any) -> set[str]:
    """The names of the head's weights."""
    own = {id(parameter) for parameter in modules_of(base).parameters()}
    return {name for name, parameter in base.named_parameters() if id(parameter) in own}


def reads_types(base: Any) -> bool:
    """Whether the model has several token types."""
    taken = "token_type_ids" in inspect.signature(type(base).forward).parameters
    return taken and (base.config.to_dict().get("type_vocab_size") or 0) > 1


def declare_inputs(base: Any, folder: Path) -> None:
    """Write into the saved tokenizer's configuration which inputs the model gets in training, so that other programs give it the
    same: not every class of transformers' tokenizers makes token types."""
    file = folder / TOKENIZER_CONFIG
    names = ["input_ids", *(["token_type_ids"] if reads_types(base) else []), "attention_mask"]
    file.write_text(json.dumps({**OBJECT.read_path(file), "model_input_names": names}, indent=2) + "\n")


def scores(base: Any, batch: TokenBatch) -> torch.Tensor:
    """The score of each pair of a micro-batch in padded rows, float32[D], with a graph."""
    assert batch.pairs is not None
    mask = batch.rows >= 0  # bool[D, T]
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": mask.long()}
    if "position_ids" in inspect.signature(type(base.base_model).forward).parameters:
        inputs["position_ids"] = batch.position_ids + encoders.first_position(base.config.to_dict())
    if reads_types(base):
        inputs["token_type_ids"] = batch.pairs.token_types
    logits: torch.Tensor = base(**inputs).logits  # [D, 1]
    return logits.squeeze(-1).float()
