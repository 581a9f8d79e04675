"""LoRA on routed experts beside a bare hand-written loop with PEFT: tokens per CPU second.

    python benchmarks/moe.py [--steps 5] [--rounds 2] [--experts 16]

A Mixtral with 4 layers of 256 and experts of 256, 2 for a token; rows of 1 024 tokens, eight rows a step, bf16 arithmetic,
AdamW, LoRA of rank 16 on the attention and on every expert. Both contenders train on the same packed documents, each in a
process of its own, in turn. CPU seconds as in `train.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import (
    LORA,
    THREADS,
    VOCABULARY,
    WARM,
    Meter,
    batches,
    in_a_process,
    tokenizer,
    train_by_hand,
    train_by_tailor,
)
from train import make_tokens


def make_mixture(folder: Path, experts: int) -> None:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tailor(work: Path, steps: int, meter: Meter) -> None:
    train_by_tailor(work, {"name": "sft"}, {**LORA, "experts": True}, steps, meter)


def bare(work: Path, steps: int, meter: Meter) -> None:
    """transformers' grouped products, PEFT's adapters on the experts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.bfloat16)
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config).train()
    train_by_hand(work, model, [p for p in model.parameters() if p.requires_grad], steps, meter)


CONTENDERS = {"bare": bare, "tailor": tailor}


def one(work: Path, contender: str, steps: int) -> None:
    """One contender in this process; prints its figures."""
    import torch

    torch.set_num_threads(THREADS)
    _split, packed = batches(work / "tokens")
    meter = Meter()
    CONTENDERS[contender](work, steps, meter)
    tokens = sum(packed.tokens(packed.batch(step)) for step in range(WARM, steps))
    print(json.dumps({"tokens_per_cpu_second": tokens / meter.seconds()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, contender = options.one
        return one(Path(work), contender, options.steps)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_mixture(work / "model", options.experts)
        make_tokens(work / "tokens", options.steps)
        rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(options.rounds):
            for name in CONTENDERS:
                found = in_a_process(__file__, ["--steps", str(options.steps)], [str(work), name])
                rates[name].append(found["tokens_per_cpu_second"])
        for name in CONTENDERS:
            ratios = [ours / theirs for ours, theirs in zip(rates[name], rates["bare"], strict=True)]
            line = {
                "benchmark": "moe",
                "experts": options.experts,
                "contender": name,
                "tokens_per_cpu_second": round(statistics.median(rates[name])),
                "ratio_to_bare": round(statistics.median(ratios), 3),
                "rounds": options.rounds,
            }
            print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
