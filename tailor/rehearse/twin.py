"""The twin of a recipe's base: the same architecture and tokenizer with few, small layers and random weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailor.encode.gguf import readable
from tailor.encode.model_files import load_config
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, GENERATION_CONFIG, MODEL_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from tailor.models import own_code
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_INNER = ("intermediate_size", "intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "n_inner", "d_inner")
_EXPERT = ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim")
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*.jinja")
_NOT = (MODEL_CONFIG, ADAPTER_CONFIG, GENERATION_CONFIG)
HIDDEN, SMALL_HEAD, EXPERT = 64, 16, 32


def make(recipe: Recipe, folder: Path) -> str:
    """Write the twin of the recipe's base into `folder`, and return what it is. No weights of the base are read.

    Raises ModelError if transformers cannot build it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = recipe.model
    config = shrunk(load_config(model.path, model.revision), hidden(recipe), layers(recipe))
    trusted = own_code.granted(model)
    _copy_tokenizer(model, folder, code=trusted)
    (folder / MODEL_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=trusted),
                dtype=torch.float32,
                trust_remote_code=trusted,
            )
            network.save_pretrained(folder)
    except Exception as error:  # a model's code raises any
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"model.path {model.path}: no small model of this architecture could be made: {reason}",
            hint="the recipe may be right all the same: rehearse it with another base of the family",
        ) from error
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{type(network).__name__} with {count / 1e6:.1f}M random parameters"


def hidden(recipe: Recipe) -> int:
    """The twin's hidden size: large enough for the recipe's ranks and dimensions."""
    model, embedding = recipe.model, recipe.method.embedding
    needed = [HIDDEN]
    if model.adapter is not None:
        needed += [model.adapter.rank, *model.adapter.rank_pattern.values()]
    if model.beacon is not None and model.beacon.rank:
        needed.append(model.beacon.rank)
    if embedding is not None:
        needed += [size + 1 for size in embedding.matryoshka]
    return -(-max(needed) // HIDDEN) * HIDDEN


def layers(recipe: Recipe) -> int | None:
    """The twin's number of layers; None for all of the base's, when the adapter names layers by their number."""
    adapter = recipe.model.adapter
    if adapter is None:
        return 2
    targets = [] if isinstance(adapter.target_modules, str) else adapter.target_modules
    named = [*targets, *adapter.modules_to_save, *adapter.rank_pattern, *adapter.alpha_pattern]
    return None if any(part.isdigit() for name in named for part in name.split(".")) else 2


def shrunk(config: Mapping[str, Any], size: int, count: int | None) -> dict[str, Any]:
    """A config.json with `count` layers (or as many as have each kind of layer) of the hidden size `size`.

    The vocabulary, the positions, the head dimension and the number of query heads per key head stay.
    """
    made = {**config}
    made.pop("quantization_config", None)
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and key in made:
            made[key] = shrunk(value, size, count)
    depth = next((int(config[key]) for key in _LAYERS if config.get(key)), 0)
    width = next((int(config[key]) for key in _HIDDEN if config.get(key)), 0)
    if not width:
        return made
    kept = depth if count is None else _kept(config, depth, count)
    for key, value in config.items():
        if key in _LAYERS:
            made[key] = kept
        elif isinstance(value, list) and len(value) == depth:
            made[key] = value[:kept]
    heads = next((int(config[key]) for key in _HEADS if config.get(key)), 0)
    if heads:
        shared = heads // int(config.get("num_key_value_heads") or heads)
        groups = 1 if shared >= 4 or shared == heads else 2
        groups = min(groups, max(1, heads // shared))
        small = shared * groups if shared < heads or config.get("num_key_value_heads") else min(heads, 2)
        made |= {key: small for key in _HEADS if key in config}
        if "num_key_value_heads" in config:
            made["num_key_value_heads"] = max(1, small // shared)
        if head_dim := _own_head_size(config):
            made["head_dim"] = head_dim
            size = math.lcm(size, small)
        else:
            size = max(size, small * SMALL_HEAD)
            size = -(-size // (small * SMALL_HEAD)) * small * SMALL_HEAD
    made |= {key: size for key in _HIDDEN if config.get(key)}
    made |= {key: 2 * size for key in _INNER if config.get(key)}
    made |= {key: EXPERT for key in _EXPERT if config.get(key)}
    if "expand" in config and "intermediate_size" in config:  # Mamba derives it
        made["intermediate_size"] = int(config["expand"]) * size
    if isinstance(config.get("time_step_rank"), int):
        made["time_step_rank"] = -(-size // 16)
    return made


def _kept(config: Mapping[str, Any], depth: int, count: int) -> int:
    """The first layers that have each kind of layer, at least `count`."""
    kept = count
    for value in config.values():
        if isinstance(value, list) and len(value) == depth and all(isinstance(one, str) for one in value):
            kept = max(kept, *(value.index(kind) + 1 for kind in set(value)))
    for key in (
        "sliding_window_pattern",
        "full_attention_interval",
        "attn_layer_period",
        "no_rope_layer_interval",
    ):
        kept = max(kept, int(config.get(key) or 0))
    return min(kept, depth) or count


def _own_head_size(config: Mapping[str, Any]) -> int | None:
    """The head dimension, if the architecture takes one that does not follow from the hidden size; else None."""
    from transformers import CONFIG_MAPPING

    given, kind = config.get("head_dim"), config.get("model_type")
    if given or kind not in CONFIG_MAPPING:
        return int(given) if given else None
    found = getattr(
        CONFIG_MAPPING[kind](**config), "head_dim", None
    )  # that of DeepSeek is its RoPE dimension
    return int(found) if found else None


def _copy_tokenizer(model: Model, folder: Path, *, code: bool) -> None:
    """Copy the small files of the base, and the Python files if the user trusts them."""
    patterns = [*_FILES, *["*.py"] * code]
    base = Path(readable(model.path))
    if not base.is_dir():
        from huggingface_hub import snapshot_download

        base = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    for pattern in patterns:
        for file in base.glob(pattern):
            if file.name not in _NOT and not file.name.endswith(".index.json") and file.is_file():
                target = folder / file.relative_to(base)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    if not (folder / TOKENIZER).is_file():  # converted from SentencePiece or tiktoken files
        tokenizer = load_tokenizer(model.path, model.revision)
        (folder / TOKENIZER).write_bytes(tokenizer.content.encode())
        if not (folder / TOKENIZER_CONFIG).is_file():
            (folder / TOKENIZER_CONFIG).write_text(json.dumps(tokenizer.config), encoding="utf-8")
