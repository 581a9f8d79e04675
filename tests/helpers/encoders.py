"""Tiny random encoders with the kinds of tokenizers that they are published with, in the layout of sentence-transformers."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

KINDS = ("bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
"""All kinds that a recipe can name."""
COMMON = ("bert", "modernbert", "roberta", "xlm-roberta")
POSITIONS = 96
LONGEST = 48
"""Tokens: `max_seq_length` of the sentence-transformers files."""
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
}


def tiny_encoder(
    folder: Path, kind: str = "bert", *, head: bool = False, published: bool = True, **pooling: Any
) -> Path:
    """A random encoder. head: saved with a masked language model's head. pooling: keys of the pooling's config.json."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    offset = kind in ("camembert", "mpnet", "roberta", "xlm-roberta")
    own: dict[str, Any] = {**_SIZES, "pad_token_id": int(offset)}
    own["max_position_embeddings"] = POSITIONS + 2 * offset
    if kind == "distilbert":
        own |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if kind == "electra":
        own["embedding_size"] = 24
    if kind == "modernbert":
        own |= {"local_attention": 8, "global_attn_every_n_layers": 2, "bos_token_id": 2, "eos_token_id": 3}
        own |= {"cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **own)
    (AutoModelForMaskedLM if head else AutoModel).from_config(config).save_pretrained(folder)
    _tokenizer(folder, kind)
    if published:
        publish(folder, **pooling)
    return folder


def tiny_cross_encoder(folder: Path) -> Path:
    """A random cross-encoder, whose scores of most pairs differ. It reads `POSITIONS` tokens."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tiny_encoder(folder, published=False)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


def publish(folder: Path, *, modules: tuple[str, ...] = ("Normalize",), **pooling: Any) -> None:
    """Write the sentence-transformers files of a model. modules: those after the pooling."""
    names = ["Transformer", "Pooling", *modules]
    paths = ["", *(f"{at}_{name}" for at, name in enumerate(names[1:], 1))]
    kinds = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
        for at, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    files: dict[str, Any] = {
        "modules.json": kinds,
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_mean_tokens": not any(key.startswith("pooling_mode") for key in pooling),
            **pooling,
        },
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": ""}},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def _tokenizer(folder: Path, kind: str) -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = _ROBERTA if kind in ("camembert", "mpnet", "roberta", "xlm-roberta") else _BERT
    first, last = (specials[0], specials[2]) if specials is _ROBERTA else (specials[2], specials[3])
    letters = string.ascii_lowercase + string.digits + string.punctuation
    if kind in ("roberta", "modernbert"):
        names = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind in ("camembert", "xlm-roberta"):
        pieces = ["▁", *(f"▁{letter}" for letter in letters), *letters, "▁the", "sea"]
        scores = [(name, 0.0) for name in specials] + [
            (piece, -float(len(piece) == 1) - 1) for piece in pieces
        ]
        tokenizer = Tokenizer(models.Unigram(scores, specials.index("<unk>"), byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        names = [*specials, *letters, *(f"##{letter}" for letter in letters)]
        tokenizer = Tokenizer(
            models.WordPiece(
                {name: at for at, name in enumerate(names)}, unk_token=specials[1 if specials is _BERT else 3]
            )
        )
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    known = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    pair = f"{first} $A {last} {last} $B {last}"
    if specials is _BERT:
        pair = f"{first} $A {last} $B:1 {last}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=pair, special_tokens=known
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = (
        ("pad", "unk", "cls", "sep", "mask") if specials is _BERT else ("bos", "pad", "eos", "unk", "mask")
    )
    config = {f"{role}_token": name for role, name in zip(roles, specials, strict=True)}
    if specials is _ROBERTA:
        config |= {"cls_token": first, "sep_token": last}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
