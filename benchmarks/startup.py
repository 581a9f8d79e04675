"""Start-up, part by part: from the command to the first step, in JSON lines.

    python benchmarks/startup.py                 one worker in the command's own process
    python benchmarks/startup.py --workers 2     real Ray workers
    python benchmarks/startup.py --recipe r.yaml scale.workers=4

Each line is one part: {"part", "seconds", "workers", "run"}. `interpreter` goes from the process's
start to the command's first line of work, `prepare` covers data, `workers` reaches until the workers
have imported everything, `model` loads the weights, and `total` reaches to the end of the first
step. `total_own` leaves out model load and preparation.
The first of the repeats warms the file cache, so the smallest total is the one to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", help="a recipe of your own; default: a tiny model made on the spot")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = Path(args.recipe) if args.recipe else make_recipe(folder)
        for number in range(args.repeat):
            run = folder / f"run-{number}"
            for part, seconds in measure(recipe, run, args.workers, args.overrides).items():
                line = {"part": part, "seconds": round(seconds, 2), "workers": args.workers, "run": number}
                print(json.dumps(line), flush=True)


def measure(recipe: Path, run: Path, workers: int, overrides: list[str]) -> dict[str, float]:
    """Seconds of each part of one `tailor run` of two steps."""
    command = [
        sys.executable,
        "-m",
        "tailor",
        "run",
        str(recipe),
        f"save.to={run}",
        f"scale.workers={workers}",
    ]
    command += ["train.steps=2", *overrides]
    spawned = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ended = time.time()
    status: dict[str, Any] = json.loads((run / "status.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first_step = next(record["time"] for record in records if record["kind"] == "train")
    last = records[-1]["time"]
    parts = {
        "interpreter": datetime.fromisoformat(status["started"]).timestamp() - spawned,
        **status["timings"],
    }
    parts["total"] = first_step - spawned
    parts["total_own"] = parts["total"] - parts.get("model", 0.0) - parts.get("prepare", 0.0)
    parts["after_training"] = ended - last
    return parts


def make_recipe(folder: Path) -> Path:
    """A tiny Llama, some conversations and a recipe for them."""
    from tests.helpers.models import tiny_llama

    tiny_llama(folder / "base")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        for i in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {folder / 'base'}, adapter: {{rank: 8}}}}\n"
        f"data: {{train: [{{path: {folder / 'rows.jsonl'}}}], max_length: 256}}\n"
        "method: {name: sft}\n"
        "optim: {learning_rate: 0.001}\n"
        f"save: {{to: {folder / 'run'}}}\n"
    )
    return recipe


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
