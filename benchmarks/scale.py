"""What the batches of 10^6 to 10^9 examples cost a worker: time, memory, and the shards that its machine reads.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--examples 1000000 ...] [--listed]

The lengths are those of one shard of 8,192 examples, repeated (log-normal, 359 tokens on average, rows of 2,048), so only the
table of blocks is stored, as preparation writes it. One process and one JSON line for each number of examples:

    order_s      from the table to the number of steps of an epoch
    first_s      the first batch after that
    batch_ms     a batch, on average over the following 200
    seek_s       a batch in the middle of the epoch, with a new object
    anonymous    bytes of memory at the end that are not files, over those at the start
    table        bytes of the table of blocks, a memory-mapped file
    fill         real tokens per token of the packed rows of the windows that were made
    nodes        number of workers -> shards that a machine of 8 workers reads before the first batch, and for 1,000 batches

--listed adds the list of an epoch, as for small splits. Then two lines for the randomness of the order, from a store that is
sorted by topic and from one that is not, and one for planning the tasks of 10 TB.

spread: standard deviation of a topic's share in batches of 512 examples, relative to independent draws (1 is a perfect
shuffle). neighbors: share of examples of a batch whose block has another example in it, relative to the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tailor.data.batches import Batches  # noqa: E402
from tailor.data.blocks import Blocks, measure  # noqa: E402
from tailor.data.large_batches import LargeBatches  # noqa: E402
from tailor.data.rows import share  # noqa: E402
from tailor.plan.batches import BatchSpec  # noqa: E402
from tailor.store import Store  # noqa: E402
from tests.helpers.large_splits import Repeated  # noqa: E402

SHARD, MAX_LENGTH, ROWS, MICRO = 8192, 2048, 1024, 1
WORKERS, PER_NODE = (1, 8, 64, 1024), 8
SPEC = BatchSpec(seed=1, max_length=MAX_LENGTH, pack=True, batch_size=ROWS)


def anonymous() -> int:
    """Bytes of this process's memory that are not those of files."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def make(examples: int, folder: Path) -> tuple[LargeBatches, np.ndarray]:
    """Batches with a memory-mapped table, and the lengths of a shard."""
    shards = examples // SHARD
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.9, SHARD), 8, MAX_LENGTH).astype(np.int64)
    nothing = np.zeros(SHARD, np.int64)
    store, name = Store(str(folder)), "blocks.arrow"
    if not store.exists(name):
        one = measure(lengths, lengths - 1, nothing, nothing, MAX_LENGTH)
        columns = [np.tile(getattr(one, field), shards) for field in one.__dataclass_fields__]
        columns[0] += np.repeat(np.arange(shards), len(one)) * SHARD
        columns[-1] = np.repeat(np.arange(shards), len(one))
        Blocks.of_columns(columns).write(store, name, MAX_LENGTH)
    values = (Repeated(column, shards) for column in (lengths, lengths - 1, nothing, nothing))
    return LargeBatches(*values, SPEC, partial(Blocks.read, store, name, MAX_LENGTH)), lengths  # type: ignore[arg-type]


def shards_of(rows: Any) -> set[int]:
    return {example // SHARD for row in rows for example in row}


def costs(examples: int, folder: Path) -> dict[str, Any]:
    """The line of one number of examples. The table exists."""
    before = anonymous()
    batches, lengths = make(examples, folder)
    started = time.perf_counter()
    steps = batches.steps(1)
    order = time.perf_counter() - started
    first = batches.batch(0)
    first_s = time.perf_counter() - started - order
    started = time.perf_counter()
    count = min(200, steps - 1)
    seen = [first, *(batches.batch(step) for step in range(1, count + 1))]
    batch_s = (time.perf_counter() - started) / count
    memory = anonymous() - before
    tokens = sum(int(lengths[np.array(row) % SHARD].sum()) for batch in seen for row in batch)
    fill = tokens / MAX_LENGTH / sum(map(len, seen))
    again, _ = make(examples, folder)
    again.steps(1)
    started = time.perf_counter()
    again.batch(steps // 2)
    seek = time.perf_counter() - started
    more = seen + [batches.batch(step) for step in range(count + 1, min(1000, steps))]
    window = {example // SHARD for example in batches._order(0).window(0)[0].starts.tolist()}
    nodes = {}
    for workers in WORKERS:
        ranks = range(min(workers, PER_NODE))
        read = [
            shards_of(row for rank in ranks for _, part in share(batch, MICRO, rank, workers) for row in part)
            for batch in more
        ]
        nodes[workers] = [len(window), len(set().union(*read, window))]
    return {
        "examples": examples,
        "shards": examples // SHARD,
        "steps": steps,
        "order_s": round(order, 3),
        "first_s": round(first_s, 3),
        "batch_ms": round(batch_s * 1e3, 2),
        "seek_s": round(seek, 3),
        "anonymous": memory,
        "table": sum(getattr(batches._blocks, name).nbytes for name in batches._blocks.__dataclass_fields__),
        "fill": round(fill, 4),
        "nodes": nodes,
    }


def listed(examples: int) -> dict[str, Any]:
    """The same for the list of an epoch."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.9, examples), 8, MAX_LENGTH).astype(np.int64)
    before = anonymous()
    batches = Batches(lengths, lengths, np.zeros(examples, np.int16), SPEC)
    started = time.perf_counter()
    epoch = batches.epoch(0)
    first = time.perf_counter() - started
    rows = sum(map(len, epoch))
    return {
        "listed": examples,
        "first_s": round(first, 3),
        "anonymous": anonymous() - before,
        "fill": round(float(lengths.sum()) / MAX_LENGTH / rows, 4),
    }


def randomness(is_sorted: bool, examples: int = 10**7, topics: int = 100) -> dict[str, Any]:
    """The spread of a topic over batches of 512 examples. is_sorted: each topic's examples follow each other in the store."""
    with tempfile.TemporaryDirectory() as folder:
        batches, _ = make(examples, Path(folder))
        order, found, neighbors = batches._order(0), [], []
        generator = np.random.default_rng(0)
        total = len(batches.lengths)
        topic = np.arange(total) * topics // total
        topic = topic if is_sorted else generator.permutation(topic)
        for number in range(len(order)):
            starts = order.window(number)[0].starts
            starts = starts[generator.permutation(len(starts))][: len(starts) // 512 * 512].reshape(-1, 512)
            found += [np.bincount(topic[part], minlength=topics) / 512 for part in starts[:64]]
            neighbors += [512 - len(np.unique(part // 1024)) for part in starts[:64]]
    independent = generator.integers(0, total, (len(neighbors), 512))
    expected = np.mean([512 - len(np.unique(part // 1024)) for part in independent])
    ideal = np.sqrt((1 / topics) * (1 - 1 / topics) / 512)
    return {
        "randomness": "sorted" if is_sorted else "not sorted",
        "topics": topics,
        "spread": round(float(np.std(np.array(found), axis=0).mean() / ideal), 3),
        "neighbors": round(float(np.mean(neighbors) / expected), 2),
    }


def planned() -> dict[str, Any]:
    """The tasks of 10,000 files of 1 GB."""
    from tailor.encode.readers import FileRange
    from tailor.encode.sources import Resolved, cut
    from tailor.spec.data import Source

    files = tuple(
        FileRange(f"s3://bucket/{number:05d}.jsonl", f"{number:05d}.jsonl", "jsonl", size=10**9)
        for number in range(10_000)
    )
    started = time.perf_counter()
    tasks = cut(Resolved(Source(path="s3://bucket/*.jsonl"), "data.train[0]", files, (), "text", False))
    return {
        "planned_bytes": sum(part.size for task in tasks for part in task),
        "tasks": len(tasks),
        "seconds": round(time.perf_counter() - started, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--listed", action="store_true")
    parser.add_argument("--one", nargs=2)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(costs(int(arguments.one[0]), Path(arguments.one[1]))), flush=True)
        return
    for examples in arguments.examples:
        with tempfile.TemporaryDirectory() as folder:
            make(examples, Path(folder))
            subprocess.run([sys.executable, __file__, "--one", str(examples), folder], check=True)
        if arguments.listed and examples <= 10**7:
            print(json.dumps(listed(examples)), flush=True)
    for is_sorted in (True, False):
        print(json.dumps(randomness(is_sorted)), flush=True)
    print(json.dumps(planned()), flush=True)


if __name__ == "__main__":
    main()
