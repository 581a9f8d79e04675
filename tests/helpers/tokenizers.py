"""Small tokenizers of the two common kinds, trained on the spot, that know every family's special tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TAGS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[TOOL_CALLS]",
)
STRIPPING_TAGS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "What is the weather in Paris today? It is sunny, and 22 degrees warm.",
    'The answer is {"name": "weather", "arguments": {"city": "Paris"}} and nothing else.',
    "Tell me a story about a small house at the sea.\n\nOnce upon a time there was a house.\n\n",
    "Below is an instruction that describes a task. USER: hello ASSISTANT: hello, how can I help?",
] * 4


def bpe_tokenizer(
    folder: Path,
    *,
    tags: Sequence[str] = TAGS,
    chat_template: str | None = None,
    bos: bool = False,
    pattern: str | None = _LLAMA_3,
) -> Path:
    """A byte-level BPE tokenizer: with the splitting pattern of Llama 3 and Qwen, or with GPT-2's (None)."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Trimmed offsets are what many published files ask for.
    return _saved(
        tokenizer, trainer, folder, tags, chat_template, bos, processors.ByteLevel(trim_offsets=True)
    )


def split_tokenizer(
    folder: Path, *, kind: str = "PreTrainedTokenizerFast", model: str = "llama", **settings: Any
) -> Path:
    """A tokenizer with Llama 3's pattern and the class `kind`, beside a config.json. A setting of None is left out.

    It cuts digits, blanks and capitals otherwise where a class puts a pattern of its own in place of the file's.
    """
    with_odd_merges(bpe_tokenizer(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": kind, **settings}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    return folder


def with_odd_merges(folder: Path) -> Path:
    """Give the tokenizer in `folder` merges of digits, blanks, line ends and capitals, which patterns split differently."""
    merges = [
        ("1", "2"),
        ("3", "4"),
        ("12", "34"),
        ("12", "3"),
        ("Ċ", "Ċ"),
        ("ĊĊ", "Ċ"),
        ("Ġ", "Ġ"),
        ("L", "L"),
        ("'", "LL"),
    ]
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for first, second in merges:
        vocabulary.setdefault(first + second, 1000 + len(vocabulary))
    known = [pair for pair in content["model"]["merges"] if tuple(pair) not in merges]
    content["model"]["merges"] = [*map(list, merges), *known]
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=1))
    return folder


def sentencepiece_tokenizer(
    folder: Path, *, tags: Sequence[str] = TAGS, chat_template: str | None = None, bos: bool = True
) -> Path:
    """A BPE tokenizer with byte fallback and a space before every text, like Llama 2's and Mistral's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    # Trained on words, so that a space stands only at the beginning of a token, as in SentencePiece.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    return _saved(tokenizer, trainer, folder, tags, chat_template, bos, None)


def _saved(
    tokenizer: Tokenizer,
    trainer: trainers.BpeTrainer,
    folder: Path,
    tags: Sequence[str],
    chat_template: str | None,
    bos: bool,
    processor: processors.PostProcessor | None,
) -> Path:
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Metaspace):
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(
        [AddedToken(tag, normalized=False, rstrip=tag in STRIPPING_TAGS) for tag in tags]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    elif processor is not None:
        tokenizer.post_processor = processor
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    # Bytes are ordinary tokens of the vocabulary, not special ones.
    content["added_tokens"] = [
        token for token in content["added_tokens"] if not token["content"].startswith("<0x")
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def with_sentencepiece_model(folder: Path, *, tags: Sequence[str] = TAGS, space: bool = True) -> Path:
    """A `sentencepiece_tokenizer` in `folder`, beside it as the file tokenizer.model, which llama.cpp reads for some families.

    space: before every text; Gemma's adds none.
    """
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece_tokenizer(folder, tags=tags)
    content = json.loads((folder / "tokenizer.json").read_text())
    if not space:
        content["normalizer"] = content["normalizer"]["normalizers"][-1]
        content["decoder"]["decoders"].pop()
        (folder / "tokenizer.json").write_text(json.dumps(content))
    ranks = {"".join(pair): at for at, pair in enumerate(content["model"]["merges"])}
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True  # BPE
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = space
    model.normalizer_spec.remove_extra_whitespaces = False
    vocabulary = content["model"]["vocab"] | {one["content"]: one["id"] for one in content["added_tokens"]}
    control = {"<s>": 3, "</s>": 3, "<unk>": 2} | dict.fromkeys(tags, 4)
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        kind = 6 if token.startswith("<0x") else control.get(token, 1)
        model.pieces.add(piece=token, score=-float(ranks.get(token, 0)), type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder
