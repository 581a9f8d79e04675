"""Speed of preparation beside its limit, the call that one writes by hand, and a peer, as JSON lines.

    python benchmarks/prepare.py [--megabytes 100] [--threads 2] [--rounds 1] [--skip NAME …]
    python benchmarks/prepare.py --chats marked|plain …

Generated text through the same tokenizer (a BPE of 8 000 tokens, trained here), in tokens per CPU second: user and system time
of the process and all its children, start-up left out except Ray's workers' own. Every way runs in a process of its own, with
a new tokenizer each time, between two measurements of the reference call in the same process:

    of_call    relative to the reference call: what one writes by hand, on rows in memory, its output thrown away
               (text: `tokenizer(texts)` of transformers; conversations: `apply_chat_template(rows, tokenize=False)` and then
               `tokenizer(texts)`, without masks)

  call             the reference call itself
  tokenizers       the batch call of the package `tokenizers` on texts in memory, output thrown away: the limit
  masks            conversations only: `apply_chat_template` with `return_assistant_tokens_mask`, row by row (templates without
                   markers of generation have no mask there)
  tailor           `prepare` in this process: hash, read, encode, write the token store
  tailor-ray       the same through Ray Data, on a Ray that is running already
  datasets-map     text only: `datasets.map` with the batch call of `tokenizers`, on a data set that is loaded already

tailor's line has the share of each part of preparation, measured once more. --chats: conversations of a system turn and three
turns each of user and assistant. `marked` is the built-in ChatML template, whose markers say what to learn; `plain` is the
same template without markers, as most models have it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from common import train_tokenizer

ROOT = Path(__file__).parents[1]
WAYS = ("call", "tokenizers", "masks", "tailor", "tailor-ray", "datasets-map")
REFERENCE_SHARE = 0.5
"""Share of the rows that the reference is measured on before and after each way, so that a busy machine slows both."""
BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=100, help="text to prepare (100)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the tokenizer, or CPUs of Ray (2)")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each way, which are added (1)")
    parser.add_argument("--chats", choices=("marked", "plain"), help="conversations in place of texts")
    parser.add_argument("--skip", nargs="*", default=[], choices=WAYS, help="ways to leave out")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder, args.threads, args.rounds)))
        return
    left_out = {*args.skip, *(("datasets-map",) if args.chats else ("masks",))}
    left_out |= {"masks"} if args.chats == "plain" else set()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), int(args.megabytes * 1e6), args.chats)
        for way in WAYS:
            if way in left_out:
                continue
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
            environment = {
                **os.environ,
                "RAYON_NUM_THREADS": str(args.threads),
                "TOKENIZERS_PARALLELISM": "true",
            }
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            what = {"benchmark": "prepare", "way": way, "chats": args.chats, "megabytes": args.megabytes}
            print(json.dumps({**what, **result}), flush=True)


def make(folder: Path, size: int, chats: str | None = None) -> None:
    """Rows of made-up words with a natural (Zipf) spread, and their tokenizer: documents of about 2 500 characters, or
    conversations of about the same."""
    draw = random.Random(0)
    syllables = [a + b + c for a in "bdfglmnprstvwk" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 4)))) for _ in range(40_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]

    def text(least: int, most: int) -> str:
        one = " ".join(draw.choices(words, weights, k=draw.randint(least, most)))
        return ". ".join(sentence.capitalize() for sentence in one.split(" ba "))

    systems = [text(20, 40) for _ in range(5)]
    written, sample = 0, []
    with (folder / "rows.jsonl").open("w") as stream:
        while written < size:
            texts = [text(200, 600)]
            row: dict[str, Any] = {"text": texts[0]}
            if chats:
                texts = [text(*(20, 180) if turn % 2 else (8, 40)) for turn in range(6)]
                turns = [
                    {"role": ("user", "assistant")[at % 2], "content": one} for at, one in enumerate(texts)
                ]
                row = {"messages": [{"role": "system", "content": draw.choice(systems)}, *turns]}
            stream.write(json.dumps(row) + "\n")
            written += sum(map(len, texts))
            if len(sample) < 1500:
                sample += texts
    train_tokenizer(folder, sample, *(("<|im_start|>", "<|im_end|>") if chats else ()))
    if chats:
        template = (ROOT / "tailor" / "encode" / "templates" / "chatml.jinja").read_text()
        if chats == "plain":
            template = re.sub(r"\{%-? (end)?generation %\}", "", template)
        (folder / "model" / "chat_template.jinja").write_text(template)


def measure(way: str, folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """One way: set up, then work under the clocks, each time between two measurements of the reference."""
    ways = {
        "call": call,
        "tokenizers": bare,
        "masks": masks,
        "tailor": tailor,
        "tailor-ray": tailor_ray,
        "datasets-map": datasets_map,
    }
    totals, references = [0.0, 0.0, 0.0], [0.0, 0.0]
    for _ in range(rounds):
        before, work, after = (
            call(folder, threads, REFERENCE_SHARE),
            ways[way](folder, threads),
            call(folder, threads, REFERENCE_SHARE),
        )
        for one, sums in ((before, references), (work, totals), (after, references)):
            for at, value in enumerate(clocked(one)[: len(sums)]):
                sums[at] += value
    tokens, cpu, wall = totals
    reference = references[0] / references[1]
    shares = {"shares": parts(folder, threads)} if way == "tailor" else {}
    return {
        "tokens": int(tokens / rounds),
        "cpu_seconds": round(cpu / rounds, 2),
        "wall_seconds": round(wall / rounds, 2),
        "tokens_per_cpu_second": round(tokens / cpu),
        "tokens_per_second": round(tokens / wall),
        "call_tokens_per_cpu_second": round(reference),
        "of_call": round(tokens / cpu / reference, 3),
        **shares,
    }


def clocked(work: Callable[[], int]) -> tuple[int, float, float]:
    """Tokens, CPU seconds and seconds of a piece of work."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    tokens = work()
    return tokens, cpu_seconds() - cpu, time.perf_counter() - wall


def cpu_seconds() -> float:
    """User and system time of this process and of all below it, also of those that are gone."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def rows_of(folder: Path, share: float = 1.0) -> list[Any]:
    """The texts, or the conversations, of the first rows."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[: int(len(lines) * share)]]
    return [row.get("text") or row["messages"] for row in rows]


def batches(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))


def call(folder: Path, threads: int, share: float = 1.0) -> Callable[[], int]:
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(folder / "model"), rows_of(folder, share)

    def work() -> int:
        total = 0
        for batch in batches(rows):
            texts = (
                batch if isinstance(batch[0], str) else tokenizer.apply_chat_template(batch, tokenize=False)
            )
            total += sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
        return total

    return work


def bare(folder: Path, threads: int) -> Callable[[], int]:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer, rows = Tokenizer.from_file(str(folder / "model" / "tokenizer.json")), rows_of(folder)
    if not isinstance(rows[0], str):
        rows = AutoTokenizer.from_pretrained(folder / "model").apply_chat_template(rows, tokenize=False)

    def work() -> int:
        return sum(
            len(one)
            for batch in batches(rows)
            for one in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        )

    return work


def masks(folder: Path, threads: int) -> Callable[[], int]:
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(folder / "model"), rows_of(folder)

    def work() -> int:
        total = 0
        for row in rows:
            found = tokenizer.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
            total += len(found["input_ids"])
        return total

    return work


def tailor(folder: Path, threads: int, through_ray: bool = False) -> Callable[[], int]:
    from tailor.encode.prepare import prepare
    from tailor.encode.tasks import in_process
    from tailor.onray.prepare import ray_runner
    from tailor.spec.data import Data
    from tailor.spec.methods.sft import Sft
    from tailor.spec.model import Model

    data = Data(train=[{"path": str(folder / "rows.jsonl")}], max_length=4096)
    model = Model(path=str(folder / "model"))
    runner = ray_runner if through_ray else in_process
    adds_end = isinstance(rows_of(folder, 1e-9 + 1)[0], str)
    store = tempfile.mkdtemp(dir=folder)

    # A document's own tokens, as the other ways count them: without the end that `prepare` adds.
    def work() -> int:
        found = prepare(data, model, Sft(name="sft"), store, runner=runner).tokens.manifest["report"]["train"]
        return int(found["tokens"] - adds_end * found["examples"])

    return work


def parts(folder: Path, threads: int) -> dict[str, float]:
    """The shares of the parts of preparation."""
    from prepare_parts import clocks_of_preparation

    return clocks_of_preparation().shares(tailor(folder, threads))


def tailor_ray(folder: Path, threads: int) -> Callable[[], int]:
    import ray
    import ray.data

    if not ray.is_initialized():
        logs = ray.LoggingConfig(log_level="ERROR")
        ray.init(num_cpus=threads, include_dashboard=False, logging_config=logs)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # The imports of Ray Data and its first run are start-up.
        ray.data.range(2).materialize()
    return tailor(folder, threads, through_ray=True)


def datasets_map(folder: Path, threads: int) -> Callable[[], int]:
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    loaded = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=tempfile.mkdtemp(dir=folder)
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [one.ids for one in encoded]}

    def work() -> int:
        mapped = loaded.map(encode, batched=True, remove_columns=["text"])
        return sum(len(ids) for ids in mapped.data.column("input_ids"))

    return work


if __name__ == "__main__":
    main()
