"""Tiny models and tokenizers in Hugging Face layout, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailor.models.causal import CausalModel
    from tailor.spec.model import Model

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(folder: Path, *, chat_template: str | None = CHATML, bos: bool = False) -> Path:
    """A byte-level tokenizer: 256 bytes and five special tokens. `bos` makes it add `<s>` to plain text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return folder


def sentencepiece_bytes(folder: Path, *, end_of_turn: str = "<|im_end|>") -> Path:
    """A tokenizer like SentencePiece's without merges: five special tokens and 256 bytes, as in `byte_tokenizer`.

    llama.cpp's converter knows byte-level tokenizers only by a hash of their merges, but takes every SentencePiece one.
    end_of_turn: the text of the token 4.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tags = (*SPECIALS[:4], end_of_turn)
    vocabulary = {
        token: index for index, token in enumerate([*tags, *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tags])
    byte_tokenizer(folder, chat_template=None)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"additional_special_tokens": list(tags[3:])}
    path.write_text(json.dumps(config))
    return folder


def tiny_llama(
    folder: Path, *, seed: int = 0, tokenizer: Callable[[Path], Path] = byte_tokenizer, **overrides: Any
) -> Path:
    """A random Llama of about 100 000 weights with the byte tokenizer. Weights are large enough to disagree."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": 261,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.15,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **overrides,
        }
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer(folder)


def load_model(spec: Model, *, precision: str = "fp32", **options: Any) -> CausalModel:
    """Load a model for training: by default on the CPU, in float32, in rows without packing.

    options: of `load_for_training`.
    """
    import torch

    from tailor.models.load import load_for_training

    settings: dict[str, Any] = {
        "device": torch.device("cpu"),
        "frozen_dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
        "pack": False,
        "activation_checkpointing": 0,
        "seed": 0,
        **options,
    }
    return load_for_training(spec, precision=precision, **settings)


OWN_CODE = """from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_own_code(folder: Path) -> Path:
    """Make the Llama in `folder` one that transformers loads by code beside it. No other folder's code serves for it."""
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(f"# {folder}\n{OWN_CODE}")
    return folder
