"""Strategies beside each other: tokens per CPU second against ddp, and memory per worker against the plan's forecast.

    python benchmarks/strategies.py [--steps 6] [--strategies ddp fsdp zero-1 zero-2 zero-3] [--lora]
    python benchmarks/strategies.py --mixture [--lora] [--experts] [--quantize nf4]

Two gloo workers with one thread each train a Llama of 69 million weights, every weight or an adapter of rank 16, AdamW,
four rows of 256 tokens a step. `--precision` is fp32 or bf16. With `--mixture` it is a Mixtral of 107 million weights, with 8
experts of which a token goes to 2; `--lora` then adapts attention, `--experts` the experts too. `--quantize nf4` quantizes the
base, which ddp and ZeRO 1 and 2 train. Every strategy runs in processes of its own, where a tiny model is trained first, so
that libraries have loaded what they need. CPU seconds are user + system time of both workers between the end of the second step
and the end of the last; memory is what a worker holds beyond what it held before the large model was loaded: at most while
loading, training, saving, and writing the artifact. `forecast` is the plan's: weights, gradients and optimizer state, and
the peak, also as a ratio to the larger worker's peak in training (where weights are sharded, also while loading). One JSON line
per strategy.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTH, ROWS, WARM, WORKERS = 256, 4, 2, 2
STRATEGIES: dict[str, Any] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "zero-1": {"name": "deepspeed", "stage": 1},
    "zero-2": {"name": "deepspeed", "stage": 2},
    "zero-3": {"name": "deepspeed", "stage": 3},
}
UNSHARDED = ["ddp", "zero-1", "zero-2"]
"""Strategies that do not shard weights, as a quantized base needs."""
MIB = 2**20


class Host:
    """A gloo worker that notes CPU time at each step and memory at each stage."""

    def __init__(self, rank: int, world: int) -> None:
        import torch

        self.rank, self.world, self.device = rank, world, torch.device("cpu")
        self.cpu: list[float] = []
        self.peak = 0.0

    def stopping(self) -> bool:
        times = os.times()
        self.cpu.append(times.user + times.system)  # asked once a step, on every worker
        self.peak = status("VmHWM")
        return False

    def report(self, record: dict[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def resume(self) -> None:
        return None


def status(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since `forget_peak`, RssAnon without files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def worker(rank: int, port: int, plan: Any, tiny: Any, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    import deepspeed  # noqa: F401 — so that every strategy starts from the same memory
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    from tailor.train import loop

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    loop.run(tiny, Host(rank, WORKERS))
    gc.collect()
    host = Host(rank, WORKERS)
    before = status("VmRSS")
    forget_peak()
    found: dict[str, Any] = {}

    def probe(session: Any, when: str, step: int) -> None:
        if when == "start":
            found["load"] = round(status("VmHWM") - before)
        else:
            found["train"] = round(host.peak - before)
            found["save"] = round(status("VmHWM") - before)
        forget_peak()

    loop.run(plan, host, probes=[probe])
    found["artifact"] = round(status("VmHWM") - before)
    found["cpu_seconds"] = host.cpu[-1] - host.cpu[WARM - 1]
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()


def material(folder: Path, *, mixture: bool, **shape: int) -> tuple[Path, Any]:
    """A model and a token store. shape: what the large model has otherwise."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.helpers.models import byte_tokenizer
    from tests.helpers.stores import make_store

    torch.manual_seed(0)
    large = {
        "vocab_size": 8192,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 1024,
    }
    if mixture:
        large |= {"intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2}
        MixtralForCausalLM(MixtralConfig(**{**large, **shape})).save_pretrained(folder / "model")
    else:
        LlamaForCausalLM(LlamaConfig(**{**large, **shape})).save_pretrained(folder / "model")
    byte_tokenizer(folder / "model")
    lengths = [int(n) for n in np.full(200, LENGTH)]
    return folder / "model", make_store(folder / "tokens", lengths)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--mixture", action="store_true", help="a mixture of experts")
    parser.add_argument("--experts", action="store_true", help="LoRA on attention and experts")
    parser.add_argument("--quantize", choices=["nf4", "int8"], help="LoRA on a quantized base")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    import torch.multiprocessing as mp

    # What is freed goes back at once, so that a peak is what was held together.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        large = material(folder / "large", mixture=args.mixture)
        small = material(
            folder / "small", mixture=args.mixture, hidden_size=48, intermediate_size=64, num_hidden_layers=2
        )
        from tests.helpers.plans import make_plan

        adapter = {"rank": 16} | ({"experts": True} if args.experts else {})
        base = {"quantize": {"type": args.quantize}} if args.quantize else {}
        own = {"model": {"adapter": adapter, **base}} if args.lora or args.experts or args.quantize else {}

        speed: dict[str, float] = {}
        for name in args.strategies or (UNSHARDED if args.quantize else STRATEGIES):
            plan, tiny = (
                make_plan(
                    model,
                    tokens,
                    folder / name / model.parent.name,
                    outlined=True,
                    data={"max_length": LENGTH},
                    train={"steps": steps, "batch_size": ROWS, "precision": args.precision},
                    scale={"workers": WORKERS, "strategy": STRATEGIES[name]},
                    **own,
                )
                for (model, tokens), steps in ((large, args.steps), (small, WARM))
            )
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            out = folder / f"{name}-out"
            out.mkdir()
            mp.spawn(worker, (port, plan, tiny, out), nprocs=WORKERS)
            ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(WORKERS)]
            seconds = sum(rank["cpu_seconds"] for rank in ranks)
            speed[name] = (args.steps - WARM) * ROWS * LENGTH / seconds
            # The forecast of a strategy that shards weights is also that of loading, where rank 0 has all of them.
            phases = ["load", "train"] if plan.strategy.shards_weights else ["train"]
            measured = max(rank[phase] for rank in ranks for phase in phases)
            held = plan.memory.weights + plan.memory.gradients + plan.memory.optimizer
            line = {
                "strategy": name,
                "tokens_per_cpu_second": round(speed[name], 1),
                "against_ddp": round(speed[name] / speed["ddp"], 2) if "ddp" in speed else None,
                "load_mib": [rank["load"] for rank in ranks],
                "train_mib": [rank["train"] for rank in ranks],
                "save_mib": [rank["save"] for rank in ranks],
                "artifact_mib": [rank["artifact"] for rank in ranks],
                "forecast_mib": {
                    "weights, gradients, optimizer": round(held / MIB),
                    "peak": round(plan.memory.peak / MIB),
                },
                "forecast_to_peak": round(plan.memory.peak / MIB / measured, 3),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
