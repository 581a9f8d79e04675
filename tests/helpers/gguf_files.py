"""Tiny `.gguf` files, written with the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.helpers.models import CHATML, SPECIALS, tiny_llama

WIDTH = 32
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_llama(folder: Path, *, quantized: bool = False, architecture: str = "llama") -> tuple[Path, Path]:
    """A Llama as a `.gguf` file, and the same model as a folder. quantized: linear weights in Q8_0, else float32."""
    import gguf

    model = tiny_llama(folder / "plain", vocab_size=262)
    config = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(folder / "tiny.gguf", architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(262)
    _add_tokenizer(writer)
    for name, weight in load_file(model / "model.safetensors").items():
        _, _, layer, rest = [*name.removesuffix(".weight").split(".", 3), "", "", ""][:4]
        in_layer = name.startswith("model.layers.")
        short = f"blk.{layer}.{NAMES[rest]}" if in_layer else NAMES[name.removesuffix(".weight")]
        if short.endswith(("attn_q", "attn_k")):  # llama.cpp rotates neighboring dimensions
            count = heads if short.endswith("q") else kv_heads
            halves = weight.reshape(count, 2, weight.shape[0] // count // 2, -1)
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        kind = None
        if quantized and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quantize(np.ascontiguousarray(weight), kind)
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(weight), raw_dtype=kind)
    _write(writer)
    return folder / "tiny.gguf", model


def file_of_zeros(file: Path, add_tokens: Callable[[Any], int], *, heads: int = 1) -> Path:
    """A tiny Llama of zeros. add_tokens: writes the tokenizer, and returns the number of its tokens."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    count = add_tokens(writer)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (count, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{part}_norm": (WIDTH,) for part in ("attn", "ffn")}
    linear = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (WIDTH, WIDTH) for part in linear}
    for part, shape in shapes.items():
        writer.add_tensor(f"{part}.weight", np.zeros(shape, dtype=np.float32))
    _write(writer)
    return file


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any) -> None:
    """The byte tokenizer of `tests.helpers.models` with one merge, because the format needs one."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*SPECIALS, *alphabet, "ab"])
    writer.add_token_types([3] * len(SPECIALS) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
