"""Training speed beside a bare hand-written loop and TRL: real and supervised tokens per CPU second.

    python benchmarks/train.py [--steps 12] [--rounds 3] [--with-trl]

A Llama of 23.5 million weights, rows of 1 024 tokens, eight rows a step, bf16 arithmetic, AdamW; LoRA
(rank 16, all linear modules) and full training, on one thread. Every contender trains on the same packed documents,
each in a process of its own, in turn, round after round; CPU seconds are user + system time of that
process between the end of its third step and the end of its last. One JSON line per contender, with
the median over the rounds and the ratio to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTH, ROWS, WARM, THREADS = 1024, 8, 2, 1
VOCABULARY = 8192
LORA = {"rank": 16, "alpha": 32.0}
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Meter:
    """CPU seconds of this process between two steps."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self) -> None:
        times = os.times()
        self.at.append(times.user + times.system)

    def seconds(self) -> float:
        return self.at[-1] - self.at[WARM - 1]


def make_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    print(f"model: {model.num_parameters() / 1e6:.1f} M weights", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def make_tokens(folder: Path, steps: int) -> None:
    """Documents of 20 to 1 024 tokens (log-normal, median 180), the last two thirds supervised."""
    import numpy as np

    from tailor.store import Store
    from tailor.tokens import MANIFEST, ShardWriter, ragged

    generator = np.random.default_rng(0)
    lengths = generator.lognormal(5.2, 0.8, size=steps * ROWS * LENGTH // 180).clip(20, LENGTH).astype(int)
    ids = generator.integers(10, VOCABULARY, size=lengths.sum())
    spans = np.stack([lengths // 3, lengths], axis=1).reshape(-1)
    folder.mkdir()
    writer = ShardWriter(folder / "train-00000.arrow")
    writer.write(
        ragged(ids, lengths), ragged(spans, np.full(len(lengths), 2)), 0, np.arange(len(lengths)) + 1
    )
    writer.close()
    shards = [{"name": "train-00000.arrow", "split": "train", "first_row": 0}]
    manifest = {"fingerprint": "benchmark", "template": None, "shards": shards, "report": {}}
    Store(str(folder)).write_json(MANIFEST, manifest)


def batches(tokens: Path) -> Any:
    from tailor.batches import BatchSpec, of_split
    from tailor.tokens import TokenStore

    split = TokenStore.open(str(tokens)).split("train")
    spec = BatchSpec(seed=42, max_length=LENGTH, pack=True, batch_size=ROWS)
    return split, of_split(split, spec)


def tailor(work: Path, method: str, steps: int, meter: Meter) -> None:
    import torch

    from tailor.batches import data_facts
    from tailor.plan import Hardware, build
    from tailor.spec.recipe import Recipe
    from tailor.tokens import TokenStore
    from tailor.train import loop

    class Host:
        rank, world, device = 0, 1, torch.device("cpu")

        def report(self, record: dict[str, Any]) -> None:
            if record["kind"] == "train":
                meter.step()

        def flush(self) -> None:
            pass

        def stopping(self) -> bool:
            return False

        def resume(self) -> None:
            return None

    recipe = Recipe.model_validate(
        {
            "model": {"path": str(work / "model"), "adapter": LORA if method == "lora" else None},
            "data": {"train": [{"path": "made"}], "max_length": LENGTH},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-4, "schedule": "constant"},
            "train": {"steps": steps, "batch_size": ROWS, "precision": "bf16"},
            "save": {"to": str(work / "run")},
        }
    )
    config = json.loads((work / "model" / "config.json").read_text())
    hardware = Hardware("cpu", 16 * 2**30, bf16=True)
    facts = data_facts(TokenStore.open(str(work / "tokens")), recipe)
    loop.run(build(recipe, facts, config, hardware, run_url=str(work / "run")), Host())


def bare(work: Path, method: str, steps: int, meter: Meter) -> None:
    """What one writes by hand: packed rows, positions that start again, all logits, autocast, AdamW."""
    import torch
    from torch.nn import functional

    from tailor.models.documents import IGNORED, Collator

    model, trained = hand_loaded(work, method)
    split, packed = batches(work / "tokens")
    collator = Collator(split, "rows", pad_to=LENGTH)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    for step in range(steps):
        rows = packed.batch(step)
        units = packed.units(rows)
        for row in rows:
            batch = collator([row])
            labels = torch.full((LENGTH,), IGNORED)
            labels[batch.predicting] = batch.targets
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            loss = functional.cross_entropy(
                out.logits[0].float(), labels, ignore_index=IGNORED, reduction="sum"
            )
            (loss / units).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.step()


def hand_loaded(work: Path, method: str) -> tuple[Any, list[Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if method == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(work / "model", dtype=dtype)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=16, lora_alpha=32, target_modules=LORA_MODULES, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    model.train()
    return model, [p for p in model.parameters() if p.requires_grad]


def trl(work: Path, method: str, steps: int, meter: Meter) -> None:
    """TRL's SFTTrainer on the same documents, packed its best way (best-fit, padding-free off on a CPU)."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

    model, _ = hand_loaded(work, method)
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
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ROWS,
        max_length=LENGTH,
        packing=True,
        packing_strategy="bfd",
        bf16=True,
        use_cpu=True,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        completion_only_loss=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": False},
    )
    SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer(),
        callbacks=[Steps()],
    ).train()


def tokenizer() -> Any:
    """A word-level one that nothing is encoded with: the artefact and TRL want one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t3")),
        eos_token="t2",
        pad_token="t0",
        unk_token="t3",
    )


CONTENDERS = {"bare": bare, "tailor": tailor, "trl": trl}


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
                "supervised_tokens": sum(packed.units(batch) for batch in measured),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-trl", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "CONTENDER", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, contender, method = options.one
        return one(Path(work), contender, method, options.steps)
    contenders = ["bare", "tailor", *(["trl"] if options.with_trl else [])]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_model(work / "model")
        make_tokens(work / "tokens", options.steps)
        for method in ("lora", "full"):
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name in contenders:
                    command = [sys.executable, "-W", "ignore", __file__, "--steps", str(options.steps)]
                    done = subprocess.run(
                        [*command, "--one", str(work), name, method],
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if done.returncode:
                        sys.exit(f"{name}, {method}:\n{done.stderr}")
                    found = json.loads(done.stdout.strip().splitlines()[-1])
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
