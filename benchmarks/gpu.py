"""What one GPU does with the shapes of an 8B Llama, in JSON lines: at most 8 minutes, nothing to download.

    python benchmarks/gpu.py [--only PART ...] [--minutes 8]
    python benchmarks/gpu.py --tiny        every part with tiny shapes on a CPU: shows that the code runs, measures nothing

The weights are random, made on the GPU, and stored in the memory of the machine (`/dev/shm`, if it has room for 16 GB). Models
train as with `tailor run`, with its plan, without checkpoints and artifact. Each part is a process of its own with a time limit:
one that fails or needs too much memory is reported as a line with `error`, and the others run. `PARTS` lists them.

Lines of steps have: tokens per second, `mfu` (the formula of a run's log: 4 or 6 operations per weight and token, without
attention), `hfu` (`tailor plan`'s operations: with attention and recomputation), the peak of the allocated memory and the plan's
forecast of it. Peaks of devices are in tailor/plan/devices.py; on other devices `mfu` and `hfu` are null. `anchor` is a figure
of other projects for the same shapes, on the named device.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Part:
    """A function of a module beside this file, which yields lines."""

    module: str
    what: str
    seconds: int
    """Time limit."""
    anchor: dict[str, Any] | None = None


PARTS = {
    "model": Part("gpu_steps", "make the random weights that the other parts load", 90),
    "lora": Part(
        "gpu_steps",
        "LoRA of rank 16 on all linear modules",
        75,
        {"device": "H100", "tokens_per_second": 12473, "mfu": 0.41},
    ),
    "qlora": Part("gpu_steps", "the same on an nf4 base", 75),
    "full": Part(
        "gpu_steps",
        "all weights, of as many layers as the forecast allows",
        75,
        {"device": "H100, torchtitan, 8 GPUs, compiled", "tokens_per_second": 6667},
    ),
    "activations": Part("gpu_steps", "LoRA on 8 layers: checkpointing, offloading, tiles", 75),
    "context": Part(
        "gpu_steps",
        "one QLoRA step with the longest row that the forecast allows in 24 GiB",
        75,
        {"device": "24 GB, Unsloth", "tokens": 78475},
    ),
    "gradcache": Part("gpu_steps", "embeddings: GradCache and checkpointed chunks, on 8 layers", 60),
    "attention": Part("gpu_kernels", "attention over packed documents, and sdpa", 40),
    "nf4": Part("gpu_kernels", "a linear layer in bf16 and in nf4", 40),
    "loss": Part("gpu_kernels", "the tiled loss, and all logits at once", 40),
    "tests": Part("gpu_tests", "the tests with the marker gpu", 120),
}
TINY_LIMIT = 4
"""Factor of the time limits with `--tiny`: the imports are most of a part, and the machine may be busy."""
OUT_OF_MEMORY = 3
"""Exit code of a part that needed more memory than the GPU has."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of all parts together")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args.one[0], Path(args.one[1]), tiny=args.tiny)
    if not args.tiny and not has_gpu():
        print("benchmarks/gpu.py: there is no CUDA device", file=sys.stderr)
        print("  hint: --tiny runs the code of every part on a CPU, with tiny shapes", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=None if args.tiny else room()) as folder:
        failed = run_all(args.only, Path(folder), seconds=60 * args.minutes, tiny=args.tiny)
    return 1 if failed else 0


def run_all(names: Sequence[str], folder: Path, *, seconds: float, tiny: bool) -> list[str]:
    """Run parts one after another within `seconds`. Returns the names of those that failed or were not run.

    The part `model` always runs, because others load what it makes.
    """
    until = time.monotonic() + seconds
    failed = []
    for name in ["model", *(name for name in names if name != "model")]:
        began = time.monotonic()
        limit = PARTS[name].seconds * (TINY_LIMIT if tiny else 1)
        error = run_part(name, folder, seconds=min(limit, until - began), tiny=tiny)
        spent = {"part": name, "seconds": round(time.monotonic() - began, 1)}
        line(spent if error is None else {**spent, "error": error})
        if error is not None:
            failed.append(name)
    return failed


def run_part(name: str, folder: Path, *, seconds: float, tiny: bool) -> str | None:
    """Run a part in a process of its own, which prints its lines. Returns why it failed, or None."""
    if seconds <= 0:
        return "no time is left: raise --minutes, or choose parts with --only"
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, str(folder)]
    with tempfile.TemporaryFile("w+") as errors:
        part = subprocess.Popen(
            command + (["--tiny"] if tiny else []), cwd=ROOT, stderr=errors, start_new_session=True
        )
        try:
            code = part.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"the time limit of {seconds:.0f} s"
        finally:
            if part.poll() is None:
                os.killpg(part.pid, signal.SIGKILL)
                part.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
    if code == OUT_OF_MEMORY:
        return f"out of memory: {last}"
    if code < 0:
        return f"ended by signal {-code}"
    return None if code == 0 else last or f"exit code {code}"


def one(name: str, folder: Path, *, tiny: bool) -> int:
    """Run a part in this process."""
    from tailor.quiet import quiet

    quiet()
    import torch

    part = PARTS[name]
    device = torch.device("cpu" if tiny else "cuda")
    try:
        for found in getattr(importlib.import_module(part.module), name)(folder, device):
            line({"part": name, **found} | ({} if part.anchor is None else {"anchor": part.anchor}))
    except torch.OutOfMemoryError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return OUT_OF_MEMORY
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def line(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def room() -> str | None:
    """The machine's memory as a folder, if it has room for the weights; None for the default."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 24e9 else None


if __name__ == "__main__":
    sys.exit(main())
