"""Writes what the passkey models learn from, the same bytes every time.

    python recipes/passkey/make_data.py rows FOLDER     train.jsonl, for the recipe
    python recipes/passkey/make_data.py many FOLDER     many.jsonl.xz, the base model's reading
    python recipes/passkey/make_data.py blank FOLDER    config.json and tokenizer of a base without weights

Notes from a tailor's shop, none longer than 128 tokens. A pass key stands somewhere in each, and the end asks for it.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

LENGTH = 128
"""Tokens of the longest note, answer and end included."""
THETA = 500.0
"""Base of the frequencies: the slowest one turns by less than half a radian within a note, and by two in four notes."""
SENTENCES = [
    "The cloth is on the table .",
    "The shop opens at eight .",
    "A customer waits by the door .",
    "The iron is warm .",
    "Nobody has seen the chalk .",
    "Two coats hang by the window .",
    "The thread is black and strong .",
    "It rains on the street .",
    "The apprentice sweeps the floor .",
    "A cart brings linen and wool .",
    "The needle lies in its box .",
    "The master reads a letter .",
    "The waistcoat has five buttons .",
    "The lamp is lit in the evening .",
    "Scissors must be sharp .",
    "The silk comes from the south .",
]
NEEDLE = "The pass key is {value} ."
QUESTION = "What is the pass key ? The pass key is"
NUMBERS = range(100, 1000)
"""Values; each is one token."""
ROWS, MANY = 1000, 20_000


def note(draw: random.Random, length: int) -> tuple[str, str]:
    """Prompt and answer of at most `length` tokens (words and marks), the end of the text included."""
    value = str(draw.choice(NUMBERS))
    room = length - len(f"{NEEDLE} {QUESTION}".split()) - 2
    told: list[str] = []
    while sum(len(sentence.split()) for sentence in told) <= room:
        told.append(draw.choice(SENTENCES))
    told.pop()
    told.insert(draw.randint(0, len(told)), NEEDLE.format(value=value))
    return " ".join([*told, QUESTION]), f" {value}"


def notes(count: int, seed: int) -> list[dict[str, str]]:
    """Notes of all lengths up to the longest; short ones come more often, for they are learned first."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, response = note(draw, int(24 * (LENGTH / 24) ** draw.random()))
        made.append({"prompt": prompt, "response": response})
    return made


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(text, preset=9) if path.suffix == ".xz" else text)


def write_blank(folder: Path) -> None:
    """A small Llama's config and a tokenizer of whole words."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    specials = ["<pad>", "</s>", "<unk>"]
    words = sorted({word for text in (*SENTENCES, NEEDLE, QUESTION) for word in text.split()} - {"{value}"})
    names = [*specials, *words, *map(str, NUMBERS)]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": LENGTH,
        },
    )
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(names),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": LENGTH,
            "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "dtype": "float32",
        },
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "rows":
        write_rows(folder / "train.jsonl", notes(ROWS, seed=1))
    elif what == "many":
        write_rows(folder / "many.jsonl.xz", notes(MANY, seed=2))
    elif what == "blank":
        write_blank(folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
