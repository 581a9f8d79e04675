"""Encoders (BERT and its relatives) as base models: they read a text in both directions, embed it, and cannot generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailor.errors import ModelError

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

ENCODERS = frozenset(
    ("bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
)
"""Model types whose base model is an encoder."""
_AFTER_PADDING = frozenset(("camembert", "mpnet", "roberta", "xlm-roberta"))
"""Model types whose first position is the one after the padding token's id."""

_DISTILBERT = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
}
"""Keys of DistilBERT's `config.json` -> the names that other models have for them."""


def standard_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `config.json` in which the sizes have their usual names."""
    if config.get("model_type") != "distilbert":
        return config
    return {**config, **{usual: config[own] for own, usual in _DISTILBERT.items() if own in config}}


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the model of a `config.json` is an encoder. A BERT that was configured as a decoder is none."""
    return config.get("model_type") in ENCODERS and not config.get("is_decoder")


def first_position(config: Mapping[str, Any]) -> int:
    """Position id of the first token of a text: 2 in RoBERTa, 0 in most models."""
    if config.get("model_type") not in _AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1


def check(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raise ModelError for what a recipe cannot do with an encoder. config: the base model's `config.json`."""
    method, model = recipe.method, recipe.model
    name = f"{model.path} ({config.get('model_type')})"
    if not is_encoder(config):
        return
    embedding = method.embedding
    if method.ranked_passages is None and (embedding is None or embedding.generates):
        mode = f"method.mode {method.streams.mode}" if method.streams else f"method {method.name}"
        raise ModelError(
            f"model.path: {name} is an encoder, which embeds texts and cannot generate, and {mode} trains generation",
            hint="set method: {name: gritlm, mode: embedding} or {name: rerank}, or use a causal language model",
        )
    for at, task in enumerate(recipe.evaluate.final.tasks if recipe.evaluate.final else ()):
        if not (task.embeds or task.ranks):
            raise ModelError(
                f"evaluate.final.tasks[{at}]: {task.name} needs a model that generates, and {name} is an encoder",
                hint="use the task retrieval",
            )
    if embedding is not None and embedding.attention != "bidirectional":
        raise ModelError(
            f"method.attention: {name} is an encoder, whose attention is always bidirectional",
            hint="set method.attention: bidirectional",
        )
    if embedding is not None and embedding.window == "widen":
        raise ModelError(
            f"method.window: {name} is an encoder, whose sliding windows cannot be widened",
            hint="set method.window: keep",
        )
    unsupported = {
        "model.add_tokens": model.add_tokens,
        "model.beacon": model.beacon,
        "model.quantize": model.quantize,
        "model.rope": model.rope,
    }
    for key, value in unsupported.items():
        if value:
            raise ModelError(f"{key} is not supported for {name}, an encoder", hint=f"remove {key}")
