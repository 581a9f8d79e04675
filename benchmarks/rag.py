"""Answers from retrieved passages: time and storage by the key-values that are used again.

    python benchmarks/rag.py [--lengths 200 800] [--rounds 2]

A random Llama of 18 million weights with a tokenizer of bytes, float32, one thread, method.attention bidirectional. Twelve
passages and queries of the given lengths in tokens, 16 new tokens per answer. The CPU time is that of embedding the query,
finding the passage and generating the answer (median over queries and rounds, all modes in turn). One JSON line per length
and mode: seconds, the share of the time of `nothing`, and bytes of the index per token of the passages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")

PASSAGES, QUERIES, NEW = 12, 4, 16
SIZE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_key_value_heads": 4}


def words(seed: int, length: int) -> str:
    import numpy as np

    letters = np.random.default_rng(seed).choice(list("abcdefghij klmnopqrst "), size=length)
    return "".join(letters).strip().ljust(length, "x")


def make(folder: Path, length: int) -> tuple[Path, Path]:
    """The model and its index of passages of so many tokens."""
    from tailor.cli.main import main
    from tailor.models.embedding.settings import Embedding
    from tests.helpers.models import tiny_llama

    model, rows, index = folder / "model", folder / "rows.jsonl", folder / "index.parquet"
    tiny_llama(model, **SIZE)
    Embedding(dimension=SIZE["hidden_size"], max_length=4096).write(model, None)
    texts = [words(number, length) for number in range(PASSAGES)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(["embed", str(model), str(rows), str(index), "--keep", "text", "--key-values"])
    assert code == 0
    return model, index


def measure(length: int, rounds: int) -> list[dict[str, Any]]:
    from tailor.artifacts.load_embedder import load_with_embedder
    from tailor.evaluate.models import find_model
    from tailor.evaluate.retrieved_answers import PassageReader, open_index
    from tailor.evaluate.reuse import TURNS

    with tempfile.TemporaryDirectory() as temporary:
        model, index = make(Path(temporary), length)
        loaded, embedder = load_with_embedder(str(model))
        readers = {
            reuse: PassageReader(
                loaded, embedder, open_index(str(index), find_model(str(model)), reuse), reuse
            )
            for reuse in TURNS
        }
        stored = sum(file.stat().st_size for file in Path(f"{index}.key-values").iterdir())
        times: dict[str, list[float]] = {reuse: [] for reuse in readers}
        for _ in range(rounds):
            for query in range(QUERIES):
                for reuse, reader in readers.items():
                    began = time.process_time()
                    reader.answer(reader.retrieve(words(100 + query, length), None), max_new_tokens=NEW)
                    times[reuse].append(time.process_time() - began)
    whole = statistics.median(times["nothing"])
    return [
        {
            "tokens": length,
            "reuse": reuse,
            "seconds": round(statistics.median(of_mode), 4),
            "share": round(statistics.median(of_mode) / whole, 3),
            "bytes per token": round(stored / (PASSAGES * length)) if "document" in reuse else 0,
        }
        for reuse, of_mode in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for length in args.lengths:
        for line in measure(length, args.rounds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
