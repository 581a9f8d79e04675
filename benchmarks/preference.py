"""Preference training beside a bare hand-written loop and TRL's DPO: pairs per CPU second.

    python benchmarks/preference.py [--steps 4] [--rounds 3] [--prompt 80] [--with-trl] [--trl-pairs 8]

The model, the rows of 1 024 tokens and the adapter of benchmarks/train.py; DPO with the base under the adapter as
the reference, eight rows (about two dozen pairs) a step, bf16 arithmetic, AdamW, on one thread. The bare loop trains on
the same packed rows and uses each of them for both passes; "apart" is tailor without shared prompts; TRL trains on the same pairs, `--trl-pairs` of them in a
forward pass (8 is its default).
Each contender runs in a process of its own, in turn, round after round; CPU seconds are user + system time of that
process between the end of its second step and the end of its last. One JSON line per contender, with the median
over the rounds, and the ratio to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

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
    padded,
    train_by_tailor,
    train_by_trl,
    write_store,
)

BETA, EOS = 0.1, 2


def make_pairs(folder: Path, steps: int, prompt_median: int) -> None:
    """Prompts of a log-normal length with this median, a quarter to 2.5 times as long; answers of 10 to 300 tokens (median
    110), with an end."""
    import numpy as np

    generator = np.random.default_rng(0)

    def lengths(median: float, low: int, high: int) -> Any:
        return generator.lognormal(np.log(median), 0.6, size=count).clip(low, high).astype(int)

    count = steps * ROWS * LENGTH // 250
    prompts = lengths(prompt_median, prompt_median // 4, prompt_median * 5 // 2)
    ids, spans = [], []
    for prompt, *answers in zip(prompts, lengths(110, 10, 300), lengths(110, 10, 300), strict=True):
        before = generator.integers(10, VOCABULARY, size=prompt)
        for answer in answers:
            ids.append(np.concatenate([before, generator.integers(10, VOCABULARY, size=answer - 1), [EOS]]))
            spans += [prompt, prompt + answer]
    write_store(
        folder,
        np.concatenate(ids),
        [len(one) for one in ids],
        spans,
        np.repeat(np.arange(count), 2) + 1,
        positions=np.tile([0, 1], count),
        is_positive=np.tile([True, False], count),
    )


def tailor(work: Path, steps: int, meter: Meter, _: int) -> None:
    train_by_tailor(work, {"name": "dpo", "beta": BETA}, LORA, steps, meter)


def apart(work: Path, steps: int, meter: Meter, at_once: int) -> None:
    """tailor with the prompt of a pair computed for each answer."""
    from tailor.train import session

    session.shares_prompts = lambda *_: False  # type: ignore[assignment]
    tailor(work, steps, meter, at_once)


def bare(work: Path, steps: int, meter: Meter, _: int) -> None:
    """What one writes by hand: packed rows, positions that start again, all logits, both passes on each row."""
    import torch
    from torch.nn.functional import logsigmoid

    from tailor.models.collator import Collator
    from tailor.models.documents import TokenBatch

    model, trained = hand_loaded(work, "lora")
    split, packed = batches(work / "tokens")
    collator = Collator(split, "rows")
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def log_probabilities(batch: TokenBatch) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(**padded(batch), use_cache=False)
        logits = out.logits[0].float()
        own = logits[batch.predicting].log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        return torch.zeros(len(batch.supervised)).index_add(0, batch.document, own)

    for step in range(steps):
        rows = packed.batch(step)
        pairs = packed.groups(rows)
        for row in rows:
            batch = collator([row])
            with torch.no_grad(), model.disable_adapter():
                reference = log_probabilities(batch)
            ratio = log_probabilities(batch) - reference
            (-logsigmoid(BETA * (ratio[::2] - ratio[1::2])).sum() / pairs).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.step()


def trl(work: Path, steps: int, meter: Meter, at_once: int) -> None:
    """TRL's DPOTrainer on the same pairs: padded in the pass, for its padding-free way needs a GPU."""
    from trl import DPOConfig, DPOTrainer

    split, packed = batches(work / "tokens")
    records = []
    for step in range(steps):
        for row in packed.batch(step):
            for chosen, rejected in zip(row[::2], row[1::2], strict=True):
                border = int(split.example(chosen).spans[0, 0])
                words = [
                    [f"t{token}" for token in split.example(index).input_ids[:-1]]
                    for index in (chosen, rejected)
                ]
                answers = [" " + " ".join(one[border:]) for one in words]
                prompt = " ".join(words[0][:border])
                records.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    train_by_trl(
        DPOTrainer,
        DPOConfig,
        work,
        "lora",
        steps,
        records,
        meter,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=trl_pairs(packed, steps, at_once) // at_once,
        beta=BETA,
    )


def trl_pairs(packed: Any, steps: int, at_once: int) -> int:
    """Pairs of a step of TRL: as many as the packed steps have in the mean, in whole forward passes."""
    mean = statistics.mean(packed.groups(packed.batch(step)) for step in range(steps))
    return at_once * round(mean / at_once)


CONTENDERS = {"bare": bare, "apart": apart, "tailor": tailor, "trl": trl}


def one(work: Path, contender: str, steps: int, at_once: int) -> None:
    """One contender in this process; prints its figures."""
    import torch

    torch.set_num_threads(THREADS)
    _, packed = batches(work / "tokens")
    pairs = sum(packed.groups(packed.batch(step)) for step in range(WARM, steps))
    if contender == "trl":
        pairs = trl_pairs(packed, steps, at_once) * (steps - WARM)
    meter = Meter()
    CONTENDERS[contender](work, steps, meter, at_once)
    print(json.dumps({"cpu_seconds": meter.seconds(), "pairs": pairs}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=80, help="median tokens of a prompt (80)")
    parser.add_argument("--with-trl", action="store_true")
    parser.add_argument("--trl-pairs", type=int, default=8, help="pairs in one forward pass of TRL (8)")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, contender = options.one
        return one(Path(work), contender, options.steps, options.trl_pairs)
    contenders = ["bare", "apart", "tailor", *(["trl"] if options.with_trl else [])]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_model(work / "model")
        make_pairs(work / "tokens", options.steps, options.prompt)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name in contenders:
                given = ["--steps", str(options.steps), "--trl-pairs", str(options.trl_pairs)]
                found = in_a_process(__file__, given, [str(work), name])
                rates[name].append(found["pairs"] / found["cpu_seconds"])
        for name in contenders:
            ratios = [ours / theirs for ours, theirs in zip(rates[name], rates["bare"], strict=True)]
            line = {
                "benchmark": "preference",
                "contender": name,
                "prompt": options.prompt,
                "pairs_per_cpu_second": round(statistics.median(rates[name]), 2),
                "ratio_to_bare": round(statistics.median(ratios), 3),
                "rounds": options.rounds,
            }
            print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
