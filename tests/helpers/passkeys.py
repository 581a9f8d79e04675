"""A base that finds a passkey in what it reads, and documents with one in their first tokens. Chance is 5 %."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tests.helpers.models import byte_tokenizer

KEYS, NOISE, ASK = (4, 24), (24, 64), 3
"""Ids of the passkeys and of everything else, half-open, and of the question for it."""


def documents(rows: int, length: int, *, within: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[rows, length], which end in the question, and the passkeys int64[rows], each in the first `within` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(*NOISE, (rows, length), generator=generator)
    keys = torch.randint(*KEYS, (rows,), generator=generator)
    places = torch.randint(0, min(within, length - 1), (rows,), generator=generator)
    ids[torch.arange(rows), places] = keys
    ids[:, -1] = ASK
    return ids, keys


def examples(rows: int, lengths: tuple[int, ...], *, within: int, seed: int) -> list:
    """Examples for a token store: documents of these lengths in turn, and the passkey, which alone is supervised."""
    made = []
    for number, length in enumerate(lengths):
        ids, keys = documents(rows // len(lengths), length, within=within, seed=seed + number)
        whole = torch.cat([ids, keys[:, None]], dim=1).numpy().astype(np.int32)
        made.append([(row, [(length, length + 1)]) for row in whole])
    return [example for group in zip(*made, strict=True) for example in group]


def base(folder: Path, *, longest: int = 64, steps: int = 200) -> Path:
    """A small Llama that finds the passkey anywhere in up to `longest` tokens, in Hugging Face layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=261,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.05,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    lengths = np.random.default_rng(0).integers(8, longest + 1, size=steps)
    for step, length in enumerate(lengths.tolist()):
        ids, keys = documents(32, length, within=length - 1, seed=step)
        hidden = network.get_decoder()(ids, use_cache=False).last_hidden_state[:, -1]
        functional.cross_entropy(network.lm_head(hidden), keys).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)
    return byte_tokenizer(folder)
