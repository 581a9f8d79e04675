"""Training speed beside a bare hand-written loop and TRL: real and supervised tokens per CPU second.

    python benchmarks/train.py [--steps 12] [--rounds 3] [--compiled] [--with-trl] [--model PATH]

A Llama of 23.5 million weights, or the model at PATH; rows of 1 024 tokens, eight rows a step, bf16 arithmetic, AdamW; LoRA
(rank 16, all linear modules) and full training, on one thread. Every contender trains on the same packed documents,
each in a process of its own, in turn, round after round; CPU seconds are user + system time of that
process between the end of its second step and the end of its last. `--compiled` adds both with torch.compile, whose
compilation is in the first step. One JSON line per contender, with the median over the rounds and the ratio to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import (
    LENGTH,
    LORA,
    ROWS,
    THREADS,
    VOCABULARY,
    WARM,
    Meter,
    batches,
    hand_loaded,
    in_a_process,
    make_model,
    train_by_hand,
    train_by_tailor,
    train_by_trl,
    write_store,
)


def make_tokens(folder: Path, steps: int) -> None:
    """Documents of 20 to 1 024 tokens (log-normal, median 180), the last two thirds supervised."""
    import numpy as np

    generator = np.random.default_rng(0)
    lengths = generator.lognormal(5.2, 0.8, size=steps * ROWS * LENGTH // 180).clip(20, LENGTH).astype(int)
    ids = generator.integers(10, VOCABULARY, size=lengths.sum())
    spans = np.stack([lengths // 3, lengths], axis=1).reshape(-1)
    write_store(folder, ids, lengths, spans, np.arange(len(lengths)) + 1)


def tailor(work: Path, method: str, steps: int, meter: Meter) -> None:
    train_by_tailor(work, {"name": "sft"}, LORA if method == "lora" else None, steps, meter)


def compiled_tailor(work: Path, method: str, steps: int, meter: Meter) -> None:
    train_by_tailor(work, {"name": "sft"}, LORA if method == "lora" else None, steps, meter, compile=True)


def bare(work: Path, method: str, steps: int, meter: Meter) -> None:
    train_by_hand(work, *hand_loaded(work, method), steps, meter)


def compiled_bare(work: Path, method: str, steps: int, meter: Meter) -> None:
    model, trained = hand_loaded(work, method)
    model.compile()
    train_by_hand(work, model, trained, steps, meter)


def trl(work: Path, method: str, steps: int, meter: Meter) -> None:
    """TRL's SFTTrainer on the same documents, packed its best way (best-fit, padding-free off on a CPU)."""
    from trl import SFTConfig, SFTTrainer

    split, packed = batches(work / "tokens")
    records = []
    for step in range(steps):
        for row in packed.batch(step):
            for index in row:
                example = split.example(index)
                mask = [0] * len(example.input_ids)
                for start, end in example.spans:
                    mask[start:end] = [1] * (end - start)
                records.append({"input_ids": example.input_ids.tolist(), "completion_mask": mask})
    train_by_trl(
        SFTTrainer,
        SFTConfig,
        work,
        method,
        steps,
        records,
        meter,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ROWS,
        packing=True,
        packing_strategy="bfd",
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": False},
    )


CONTENDERS = {
    "bare": bare,
    "tailor": tailor,
    "bare, compiled": compiled_bare,
    "tailor, compiled": compiled_tailor,
    "trl": trl,
}


def one(work: Path, contender: str, method: str, steps: int) -> None:
    """One contender in this process; prints its figures."""
    import torch

    torch.set_num_threads(THREADS)
    _split, packed = batches(work / "tokens")
    measured = [packed.batch(step) for step in range(WARM, steps)]
    meter = Meter()
    CONTENDERS[contender](work, method, steps, meter)
    print(
        json.dumps(
            {
                "cpu_seconds": meter.seconds(),
                "tokens": sum(packed.tokens(batch) for batch in measured),
                "supervised_tokens": sum(packed.supervised_tokens(batch) for batch in measured),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="also both with torch.compile")
    parser.add_argument("--with-trl", action="store_true")
    parser.add_argument("--model", type=Path, help="folder of a Llama-like model in place of the made one")
    parser.add_argument("--method", choices=["lora", "full"], help="only one of them")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "CONTENDER", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, contender, method = options.one
        return one(Path(work), contender, method, options.steps)
    contenders = ["bare", "tailor"]
    contenders += ["bare, compiled", "tailor, compiled"] if options.compiled else []
    contenders += ["trl"] if options.with_trl else []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if options.model is None:
            make_model(work / "model")
        else:
            (work / "model").symlink_to(options.model.resolve())
        make_tokens(work / "tokens", options.steps)
        for method in [options.method] if options.method else ["lora", "full"]:
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name in contenders:
                    found = in_a_process(__file__, ["--steps", str(options.steps)], [str(work), name, method])
                    seconds = found["cpu_seconds"]
                    rates[name].append((found["tokens"] / seconds, found["supervised_tokens"] / seconds))
            for name in contenders:
                ratios = [
                    ours[0] / theirs[0] for ours, theirs in zip(rates[name], rates["bare"], strict=True)
                ]
                line = {
                    "benchmark": "train",
                    "method": method,
                    "contender": name,
                    "tokens_per_cpu_second": round(statistics.median(rate for rate, _ in rates[name])),
                    "supervised_tokens_per_cpu_second": round(
                        statistics.median(rate for _, rate in rates[name])
                    ),
                    "ratio_to_bare": round(statistics.median(ratios), 3),
                    "rounds": options.rounds,
                }
                print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
