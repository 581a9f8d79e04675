"""Speed of preparation beside its limit and a peer, as JSON lines.

    python benchmarks/prepare.py [--megabytes 100] [--threads 2] [--skip NAME …]

The same generated text through the same tokenizer (a BPE of 8 000 tokens, trained here), in tokens
per CPU second: user and system time of the process and all its children, start-up left out except
Ray's workers' own. Every way runs in a process of its own, and its ratio `of_limit` is to the bare
batch call in that process just before and after.

  tokenizers       the bare batch call on texts in memory, its output thrown away: the limit
  tailor           `prepare` in this process: hash, read, encode, write the token store
  tailor-ray       the same through Ray Data, on a Ray that is running already
  datasets-map     `datasets.map` with the same batch call, on a data set that is loaded already
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from common import train_tokenizer

WAYS = ("tokenizers", "tailor", "tailor-ray", "datasets-map")
LIMIT_SHARE = 0.15
"""Share of the text that the limit is measured on before and after each way, so that a busy machine slows both."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=100, help="text to prepare (100)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the tokenizer, or CPUs of Ray (2)")
    parser.add_argument("--skip", nargs="*", default=[], choices=WAYS, help="ways to leave out")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder, args.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), int(args.megabytes * 1e6))
        for way in WAYS:
            if way in args.skip:
                continue
            command = [
                sys.executable,
                __file__,
                "--way",
                way,
                "--folder",
                folder,
                "--threads",
                str(args.threads),
            ]
            environment = {
                **os.environ,
                "RAYON_NUM_THREADS": str(args.threads),
                "TOKENIZERS_PARALLELISM": "true",
            }
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            print(
                json.dumps({"benchmark": "prepare", "way": way, "megabytes": args.megabytes, **result}),
                flush=True,
            )


def make(folder: Path, size: int) -> None:
    """Documents of about 2 500 characters of made-up words with a natural (Zipf) spread, and their tokenizer."""
    draw = random.Random(0)
    syllables = [a + b + c for a in "bdfglmnprstvwk" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 4)))) for _ in range(40_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    written, sample = 0, []
    with (folder / "rows.jsonl").open("w") as stream:
        while written < size:
            text = " ".join(draw.choices(words, weights, k=draw.randint(200, 600)))
            text = ". ".join(sentence.capitalize() for sentence in text.split(" ba "))
            stream.write(json.dumps({"text": text}) + "\n")
            written += len(text)
            if len(sample) < 1500:
                sample.append(text)
    train_tokenizer(folder, sample)


def measure(way: str, folder: Path, threads: int) -> dict[str, float]:
    """One way: set up, then work under the clocks, between two measurements of the limit."""
    ways = {"tokenizers": bare, "tailor": tailor, "tailor-ray": tailor_ray, "datasets-map": datasets_map}
    work, limit = ways[way](folder, threads), bare(folder, threads, share=LIMIT_SHARE)
    before = clocked(limit)
    tokens, cpu, wall = clocked(work)
    after = clocked(limit)
    fastest = (before[0] + after[0]) / (before[1] + after[1])
    return {
        "tokens": tokens,
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "tokens_per_cpu_second": round(tokens / cpu),
        "tokens_per_second": round(tokens / wall),
        "limit_tokens_per_cpu_second": round(fastest),
        "of_limit": round(tokens / cpu / fastest, 3),
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


def bare(folder: Path, threads: int, share: float = 1.0) -> Callable[[], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    lines = (folder / "rows.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines[: int(len(lines) * share)]]

    def work() -> int:
        batches = (texts[at : at + 512] for at in range(0, len(texts), 512))
        return sum(
            len(one)
            for batch in batches
            for one in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        )

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

    # A document's own tokens, as the other ways count them: without the end that `prepare` adds.
    def work() -> int:
        report = prepare(
            data, model, Sft(name="sft"), str(folder / "tokens" / str(through_ray)), runner=runner
        ).tokens.manifest["report"]
        return int(report["train"]["tokens"] - report["train"]["examples"])

    return work


def tailor_ray(folder: Path, threads: int) -> Callable[[], int]:
    import ray
    import ray.data

    ray.init(num_cpus=threads, include_dashboard=False, logging_config=ray.LoggingConfig(log_level="ERROR"))
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
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
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
