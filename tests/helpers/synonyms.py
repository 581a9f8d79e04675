"""Tiny embedding models to which two words of one meaning are the same, so that they find what shares no word with a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEANINGS = (
    ("physician", "doctor"),
    ("mended", "repaired"),
    ("automobile", "car"),
    ("swiftly", "fast"),
)
OTHERS = (
    "shop",
    "open",
    "cloth",
    "table",
    "sea",
    "wind",
    "harbour",
    "lamp",
    "wool",
    "linen",
    "bread",
    "road",
)
"""Words of one meaning each. All others mean nothing."""
DEEP = "physician mended automobile swiftly "
ASKED = "\ndoctor repaired car fast?"
"""They share no word, and mean the same."""
FILL = "shop open cloth table sea wind harbour lamp wool linen bread road "


def _ids() -> dict[str, int]:
    words = [word for meaning in MEANINGS for word in meaning] + [*OTHERS]
    return {"[UNK]": 0, "</s>": 1, **{word: at + 2 for at, word in enumerate(words)}}


def _table(width: int, seed: int) -> Any:
    """Embeddings of the words, float32[n, width]: a synonym has its word's."""
    import torch

    ids = _ids()
    table = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(seed))
    table[:2] = 0
    for word, same in MEANINGS:
        table[ids[same]] = table[ids[word]]
    return table


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(_ids(), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _silence(model: Any, names: tuple[str, ...]) -> None:
    """No layer adds anything: a token's state is its own embedding."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in names):
                weight.zero_()


def trained_embedder(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """As a run of gritlm leaves it: a decoder's folder with embedding.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tailor.models.embedding.settings import Embedding

    config = LlamaConfig(
        vocab_size=len(_ids()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    _silence(model, ("o_proj", "down_proj"))
    model.model.embed_tokens.weight.data.copy_(_table(32, seed))
    model.save_pretrained(folder)
    _tokenizer(folder)
    # Causal, for a token that feels nothing of the one behind it is no bidirectional one.
    Embedding(**{"attention": "causal", "dimension": 32, "max_length": 128, **settings}).write(folder, None)
    return folder


def published_embedder(
    folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None, attends: bool = False
) -> Path:
    """As sentence-transformers itself saves it: an encoder with learned positions, and mean pooling.

    attends: its layers do something, so that synonyms are not quite the same.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(_ids()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2 if attends else 1,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = BertModel(config)
    if not attends:
        _silence(model, ("output.dense", "position_embeddings", "token_type_embeddings"))
    model.embeddings.word_embeddings.weight.data.copy_(_table(32, seed))
    base = folder.parent / f"{folder.name}-base"
    model.save_pretrained(base)
    _tokenizer(base)
    layers = [Transformer(str(base)), Pooling(32, "mean")]
    made = SentenceTransformer(modules=layers, device="cpu", prompts=prompts or {})
    made.max_seq_length = 64
    made.save_pretrained(str(folder), create_model_card=False)
    return folder
