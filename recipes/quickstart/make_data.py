"""Writes what the quickstart's models learn from, the same bytes every time.

    python recipes/quickstart/make_data.py conversations FOLDER    train.jsonl and evaluation.jsonl
    python recipes/quickstart/make_data.py pairs FOLDER            pairs.jsonl and pairs-evaluation.jsonl
    python recipes/quickstart/make_data.py ledger FOLDER           ledger.jsonl.xz, the base model's reading
    python recipes/quickstart/make_data.py blank FOLDER            config.json and tokenizer of a base without weights

A tailor's shop. Each cloth has its needle, thread, iron and seam, each garment its buttons and cloth
length. The base model has read the shop's ledger: plain notes about every order. It has never seen a
question or a chat. The conversations teach it to answer customers' questions; a fifth of all orders
(colour, cloth and garment) is held out and asked about only in the evaluation. The pairs teach it to find
the note about an order that a question is about, among notes about orders like it; the same orders are held out.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
import zlib
from pathlib import Path

COLOURS = [
    "black",
    "blue",
    "brown",
    "cream",
    "green",
    "grey",
    "navy",
    "plum",
    "red",
    "rust",
    "white",
    "yellow",
]
CLOTHS = {  # needle, thread, iron, seam in mm
    "canvas": (100, "linen", "hot", 20),
    "corduroy": (90, "cotton", "warm", 15),
    "cotton": (80, "cotton", "hot", 15),
    "denim": (110, "linen", "hot", 20),
    "flannel": (80, "wool", "warm", 15),
    "linen": (75, "linen", "hot", 12),
    "satin": (65, "silk", "cool", 10),
    "silk": (60, "silk", "cool", 8),
    "tweed": (95, "wool", "damp", 18),
    "velvet": (70, "silk", "damp", 12),
}
GARMENTS = {  # buttons, cloth in dm
    "blazer": (3, 28),
    "cape": (1, 35),
    "cloak": (2, 42),
    "coat": (6, 38),
    "dress": (7, 32),
    "jacket": (4, 25),
    "shirt": (8, 20),
    "skirt": (5, 18),
    "vest": (9, 14),
    "waistcoat": (10, 16),
}
NAMES = [
    "Ada",
    "Basil",
    "Clara",
    "Dora",
    "Edgar",
    "Flora",
    "Greta",
    "Hugo",
    "Ida",
    "Jasper",
    "Kit",
    "Laura",
    "Max",
    "Nora",
    "Otto",
    "Percy",
    "Ruby",
    "Silas",
    "Tilda",
    "Vera",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]

LEDGER_NOTES, CONVERSATIONS, HELD_OUT = 24_000, 3000, 200
VOCABULARY = 512

INSTRUCTION = "Find the note about this order"

Order = tuple[str, str, str]  # colour, cloth, garment


def facts(order: Order) -> dict[str, str]:
    """What the shop does for an order, as the sentences that answer."""
    colour, cloth, garment = order
    needle, thread, iron, seam = CLOTHS[cloth]
    buttons, length = GARMENTS[garment]
    return {
        "needle": f"Take needle {needle}.",
        "thread": f"Sew it with {colour} {thread} thread.",
        "iron": f"Press the {cloth} with a {iron} iron.",
        "seam": f"Leave {seam} mm for the seams.",
        "buttons": f"A {garment} takes {buttons} buttons.",
        "length": f"Buy {length} dm of {colour} {cloth}.",
    }


REPORTED = {  # how the ledger tells what a customer wanted to know
    "needle": ("which needle {it} needs", "what needle to use on {it}"),
    "thread": ("which thread goes with {it}", "what thread to take for {it}"),
    "iron": ("how hot the iron may be for {it}", "which iron is right for {it}"),
    "seam": ("how wide the seams of {it} are", "what to leave for the seams of {it}"),
    "buttons": ("how many buttons {it} takes", "what buttons to sew on {it}"),
    "length": ("how much cloth {it} takes", "how much cloth to buy for {it}"),
}

QUESTIONS = {  # how a customer asks
    "needle": ("Which needle do I need for {it}?", "I sew {it}. What needle should I use?"),
    "thread": ("Which thread goes with {it}?", "I sew {it}. What thread should I take?"),
    "iron": ("How hot may the iron be for {it}?", "I press {it}. Which iron is right?"),
    "seam": ("How wide are the seams of {it}?", "I cut {it}. What should I leave for the seams?"),
    "buttons": ("How many buttons do I need for {it}?", "I finish {it}. How many buttons should I sew on?"),
    "length": ("How much cloth do I buy for {it}?", "I plan {it}. How much cloth should I buy?"),
}


def orders() -> list[Order]:
    return [(colour, cloth, garment) for colour in COLOURS for cloth in CLOTHS for garment in GARMENTS]


def held_out(order: Order) -> bool:
    """A fifth of the orders, by a hash, so that it is the same everywhere."""
    return zlib.crc32(" ".join(order).encode()) % 5 == 0


def ledger(count: int = LEDGER_NOTES) -> list[str]:
    """Plain notes: what the shop does for an order, or what customers wanted to know, and the answer."""
    draw = random.Random(1)
    notes = []
    for _ in range(count):
        day = draw.choice(DAYS)
        if draw.random() < 0.3:
            order = draw.choice(orders())
            told = list(facts(order).values())
            draw.shuffle(told)
            notes.append(" ".join([f"{day}, {draw.choice(NAMES)}: a {' '.join(order)}.", *told]))
            continue
        parts = [f"{day}."]
        for _ in range(draw.randint(2, 5)):
            order, asked = draw.choice(orders()), draw.choice(sorted(REPORTED))
            wanted = draw.choice(REPORTED[asked]).format(it=f"a {' '.join(order)}")
            parts.append(f"{draw.choice(NAMES)} wanted to know {wanted}. {facts(order)[asked]}")
        notes.append(" ".join(parts))
    return notes


def question(order: Order, asked: str, draw: random.Random) -> str:
    it = f"a {' '.join(order)}"
    return draw.choice(QUESTIONS[asked]).format(it=it)


def conversations(count: int, *, of_held_out: bool, seed: int) -> list[list[dict[str, str]]]:
    """Conversations of one to three questions about one order each; held-out ones have a single question."""
    draw = random.Random(seed)
    mine = [order for order in orders() if held_out(order) == of_held_out]
    made = []
    for index in range(count):
        order = mine[index % len(mine)] if of_held_out else draw.choice(mine)
        topics = draw.sample(sorted(QUESTIONS), 1 if of_held_out else draw.randint(1, 3))
        turns = []
        for asked in topics:
            turns.append({"role": "user", "content": question(order, asked, draw)})
            turns.append({"role": "assistant", "content": facts(order)[asked]})
        made.append(turns)
    return made


def note(order: Order) -> str:
    """The shop's short note about an order, of which there is one."""
    draw = random.Random(" ".join(order))
    told = draw.sample(list(facts(order).values()), 2)
    return " ".join([f"{draw.choice(DAYS)}, {draw.choice(NAMES)}: a {' '.join(order)}.", *told])


def like(order: Order, draw: random.Random) -> Order:
    """An order that differs in one thing, and is held out where this one is."""
    while True:
        other = list(order)
        at = draw.randrange(3)
        other[at] = draw.choice((COLOURS, sorted(CLOTHS), sorted(GARMENTS))[at])
        if other != list(order) and held_out(tuple(other)) == held_out(order):  # type: ignore[arg-type]
            return tuple(other)  # type: ignore[return-value]


def pairs(*, of_held_out: bool, seed: int) -> list[dict[str, object]]:
    """A question about each order, the note about it, and notes about two orders like it, as GritLM's rows."""
    draw = random.Random(seed)
    mine = [order for order in orders() if held_out(order) == of_held_out]
    draw.shuffle(mine)
    rows: list[dict[str, object]] = []
    for order in mine[:HELD_OUT] if of_held_out else mine:
        asked = draw.choice(sorted(QUESTIONS))
        others = [["", note(like(order, draw))] for _ in range(2)]
        query = [INSTRUCTION, question(order, asked, draw)]
        rows.append({"query": query, "pos": [["", note(order)]], "neg": others})
    return rows


def write_rows(path: Path, key: str, values: list[object]) -> None:
    write_lines(path, [{key: value} for value in values])


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(text, preset=9) if path.suffix == ".xz" else text)


def write_blank(folder: Path) -> None:
    """A small Llama's config and a byte-level BPE tokenizer trained on the ledger and the questions."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ledger(4000)
    for turns in conversations(600, of_held_out=False, seed=2):
        texts += [turn["content"] for turn in turns]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 256,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    )
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "dtype": "float32",
        },
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "conversations":
        write_rows(
            folder / "train.jsonl", "messages", conversations(CONVERSATIONS, of_held_out=False, seed=3)
        )
        write_rows(folder / "evaluation.jsonl", "messages", conversations(HELD_OUT, of_held_out=True, seed=4))
    elif what == "pairs":
        write_lines(folder / "pairs.jsonl", pairs(of_held_out=False, seed=5))
        write_lines(folder / "pairs-evaluation.jsonl", pairs(of_held_out=True, seed=6))
    elif what == "ledger":
        write_rows(folder / "ledger.jsonl.xz", "text", ledger())
    elif what == "blank":
        write_blank(folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
