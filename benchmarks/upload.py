"""What checkpoints cost training when the run's folder is a slow remote store.

    python benchmarks/upload.py [--steps 160] [--every 40] [--rate 1.0] [--latency 0.2]

LoRA training of a small Llama on one thread by the whole of `tailor run`, with its log, status, TensorBoard
copies and lease, into a store that takes `rate` MB/s, all writers together, after `latency` seconds for each
request. One JSON line for each way: `background` as it is, `synchronous` where training waits for the commit
(the control), `none` without checkpoints but that of the last step, which is left out everywhere.

share_lost: blocked_share, the share of the time in which training waited for a checkpoint to be written, plus
what steps that ran beside an upload took longer than the other steps of the same run (beside_upload: the ratio
of their medians). upload_steps: how many steps an upload took.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WARM = 3


def throttle(rate: float, latency: float) -> None:
    """Make `faulty://` slow."""
    from tests.helpers.faulty_storage import Faulty

    link = threading.Lock()
    pipe, put = Faulty.pipe_file, Faulty.put_file

    def wait(size: int) -> None:
        time.sleep(latency)
        with link:
            time.sleep(size / rate / 1e6)

    def slow_pipe(self: Any, path: str, value: bytes, **options: Any) -> None:
        wait(len(value))
        pipe(self, path, value)

    def slow_put(self: Any, local: str, remote: str, **options: Any) -> None:
        wait(os.path.getsize(local))
        put(self, local, remote)

    Faulty.pipe_file, Faulty.put_file = slow_pipe, slow_put  # type: ignore[method-assign]


class Meter:
    """When training was held up, and when a checkpoint was on its way."""

    def __init__(self, *, synchronous: bool) -> None:
        from tailor.train.saving import Saver

        self.blocked: list[tuple[float, float]] = []
        self.uploads: list[tuple[float, float]] = []
        save, commit = Saver.save, Saver._commit

        def metered_save(saver: Saver, *arguments: Any) -> float:
            began = time.time()
            seconds = save(saver, *arguments)
            if synchronous:
                saver.wait()
            self.blocked.append((began, time.time()))
            return seconds

        def metered_commit(saver: Saver, *arguments: Any) -> None:
            began = time.time()
            commit(saver, *arguments)
            self.uploads.append((began, time.time()))

        self._restore = (save, commit)
        Saver.save, Saver._commit = metered_save, metered_commit  # type: ignore[method-assign]

    def close(self) -> None:
        from tailor.train.saving import Saver

        Saver.save, Saver._commit = self._restore  # type: ignore[method-assign]


def measure(recipe: dict[str, Any], *, synchronous: bool) -> dict[str, Any]:
    from tests.helpers.faulty_storage import run

    meter = Meter(synchronous=synchronous)
    try:
        outcome, _ = run(recipe)
    finally:
        meter.close()
    ends = [record["time"] for record in outcome.records if record["kind"] == "train"][WARM:]
    steps = list(itertools.pairwise(ends))
    blocked = sum(_overlap(hold, (ends[0], ends[-1])) for hold in meter.blocked)
    beside, alone = [], []
    for step in steps:
        if any(_overlap(hold, step) for hold in meter.blocked):
            continue
        uploading = any(_overlap(upload, step) > 0.5 * (step[1] - step[0]) for upload in meter.uploads)
        (beside if uploading else alone).append(step[1] - step[0])
    ratio = statistics.median(beside) / statistics.median(alone) if beside else 1.0
    share = blocked / (ends[-1] - ends[0])
    slowed = sum(beside) / (ends[-1] - ends[0]) * (1 - 1 / ratio)
    uploads = [end - began for began, end in meter.uploads[:-1]]
    return {
        "steps": len(steps),
        "checkpoints": len(uploads),
        "step_seconds": round(statistics.median(alone), 4),
        "upload_steps": round(statistics.mean(uploads) / statistics.median(alone), 1) if uploads else None,
        "blocked_share": round(share, 4),
        "beside_upload": round(ratio, 3),
        "share_lost": round(share + slowed, 4),
    }


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def material(folder: Path) -> None:
    from tests.helpers.models import tiny_llama

    size = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    tiny_llama(folder / "model", initializer_range=0.02, **size)
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": f"{i} it is. " * 9},
            ]
        }
        for i in range(400)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1.0, help="MB/s")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of each request")
    options = parser.parse_args()
    throttle(options.rate, options.latency)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TAILOR_CACHE"] = str(folder / "cache")
        material(folder)
        for way in ("none", "background", "synchronous"):
            recipe = {
                "model": {"path": str(folder / "model"), "adapter": {"rank": 16}},
                "data": {
                    "train": [{"path": str(folder / "rows.jsonl")}],
                    "max_length": 128,
                    "store": str(folder / "tokens"),
                },
                "method": {"name": "sft"},
                "optim": {"learning_rate": 1e-4},
                "train": {"steps": options.steps, "batch_size": 8, "precision": "fp32"},
                "scale": {"cpus_per_worker": 1},
                "save": {"to": f"faulty://{way}/run", "every": None if way == "none" else options.every},
            }
            found = measure(recipe, synchronous=way == "synchronous")
            print(json.dumps({"benchmark": "upload", "way": way, **found}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
