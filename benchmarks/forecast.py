"""The plan's forecast of memory beside the peak that a GPU's allocator saw, and the speed.

    python benchmarks/forecast.py [--lengths 2048 8192]

A Llama of 0.6 billion weights with random values trains four steps of one row each on one GPU, in bf16 with activation
checkpointing. One JSON line per way of training and length: GiB at the peak of a step, GiB forecast, tokens per second
and model FLOPs utilisation of the last step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

GIB = 2**30
LORA = {"rank": 16, "alpha": 32}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, fsdp": {"scale": {"strategy": "fsdp"}},
    "full, fsdp, offload": {"scale": {"strategy": {"name": "fsdp", "offload": True}}},
    "full, zero-2": {"scale": {"strategy": {"name": "deepspeed", "stage": 2}}},
    "full, zero-3": {"scale": {"strategy": {"name": "deepspeed", "stage": 3}}},
    "lora": {"model": {"adapter": LORA}},
    "lora, tiled and offloaded": {
        "model": {"adapter": LORA},
        "train": {"tiled_mlp": True, "activation_offloading": True},
    },
    "qlora": {"model": {"adapter": LORA, "quantize": {"type": "nf4"}}},
}


def material(folder: Path, lengths: list[int]) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.helpers.models import byte_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32768,
        hidden_size=1536,
        intermediate_size=4608,
        num_hidden_layers=16,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=max(lengths),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    byte_tokenizer(folder / "model")
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from tailor.train import loop
    from tests.helpers.hosts import PlainHost
    from tests.helpers.plans import make_plan
    from tests.helpers.stores import make_store

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = material(folder, args.lengths)
        for length in args.lengths:
            tokens = make_store(folder / f"tokens-{length}", [length] * 8)
            for number, (name, sections) in enumerate(WAYS.items()):
                train = {"precision": "bf16", "batch_size": 1, "steps": 4, "activation_checkpointing": True}
                own = {**sections, "train": {**train, **sections.get("train", {})}}
                plan = make_plan(
                    model, tokens, folder / f"{length}-{number}", data={"max_length": length}, **own
                )
                host = PlainHost(device=torch.device("cuda", 0))
                torch.cuda.empty_cache()
                loop.run(plan, host)
                steps = host.of("train")
                peak = max(step["peak_memory_bytes"] for step in steps) / GIB
                forecast = plan.memory.peak / GIB
                line = {
                    "way": name,
                    "length": length,
                    "peak_gib": round(peak, 2),
                    "forecast_gib": round(forecast, 2),
                    "forecast_of_peak": round(forecast / peak, 2),
                    "tokens_per_second": round(steps[-1]["tokens_per_second"]),
                    "mfu": round(steps[-1]["mfu"], 3) if "mfu" in steps[-1] else None,
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
