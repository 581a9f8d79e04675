"""What the benchmarks share: the tokenizer, the model, the token store, the host that meters, and the rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
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


def train_tokenizer(folder: Path, sample: Sequence[str], *further: str) -> None:
    """A byte-level BPE tokenizer of 8 000 tokens, trained on a sample, in `folder`/model. further: its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["</s>", *further],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    (folder / "model").mkdir()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))


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


def padded(batch: Any) -> dict[str, Any]:
    """The model's inputs of a packed row, [1, LENGTH] each. The padding is a document of its own."""
    import torch
    from torch.nn import functional

    more = LENGTH - batch.input_ids.shape[1]
    positions = torch.cat([batch.position_ids, torch.arange(more)[None]], dim=1)
    return {"input_ids": functional.pad(batch.input_ids, (0, more)), "position_ids": positions}


def train_by_hand(work: Path, model: Any, trained: Sequence[Any], steps: int, meter: Meter) -> None:
    """What one writes by hand: packed rows, positions that start again, all logits, autocast, AdamW."""
    import torch
    from torch.nn import functional

    from tailor.models.collator import Collator
    from tailor.models.documents import IGNORED

    split, packed = batches(work / "tokens")
    collator = Collator(split, "rows")
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    for step in range(steps):
        rows = packed.batch(step)
        denominator = packed.supervised_tokens(rows)
        for row in rows:
            batch = collator([row])
            labels = torch.full((LENGTH,), IGNORED)
            labels[batch.predicting] = batch.targets
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(**padded(batch), use_cache=False)
            loss = functional.cross_entropy(
                out.logits[0].float(), labels, ignore_index=IGNORED, reduction="sum"
            )
            (loss / denominator).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.step()


def write_store(folder: Path, ids: Any, lengths: Any, spans: Any, rows: Any, **columns: Any) -> None:
    """A token store of one training split. ids: all examples' in a row; spans: two bounds an example; rows: their numbers."""
    import numpy as np

    from tailor.data.token_store import MANIFEST, ShardWriter, ragged
    from tailor.store import Store

    folder.mkdir()
    writer = ShardWriter(folder / "train-00000.arrow")
    bounds = ragged(np.asarray(spans), np.full(len(lengths), 2))
    writer.write(ragged(ids, np.asarray(lengths)), bounds, 0, rows, **columns)
    writer.close()
    shards = [
        {
            "name": "train-00000.arrow",
            "split": "train",
            "first_row": 0,
            "files": ["rows.jsonl"],
            "datasets": [],
        }
    ]
    manifest = {"fingerprint": "benchmark", "template": None, "shards": shards, "report": {}}
    Store(str(folder)).write_json(MANIFEST, manifest)


def batches(tokens: Path) -> Any:
    """The split and its packed batches, as every contender reads them."""
    from tailor.data.facts import of_split
    from tailor.data.token_store import TokenStore
    from tailor.plan.batches import BatchSpec

    split = TokenStore.open(str(tokens)).split("train")
    return split, of_split(split, BatchSpec(seed=42, max_length=LENGTH, pack=True, batch_size=ROWS))


class MeteredHost:
    """One worker that starts from nothing and stores nothing. It calls `on_step` with the record of each step.

    device: by default the CPU.
    """

    rank, world = 0, 1

    def __init__(self, on_step: Callable[[dict[str, Any]], None], device: Any = None) -> None:
        import torch

        self._on_step = on_step
        self.device = device or torch.device("cpu")

    def report(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._on_step(record)

    def flush(self) -> None:
        pass

    def stopping(self) -> bool:
        return False

    def resume(self) -> str | None:
        return None


def recipe_of(work: Path, **sections: dict[str, Any]) -> Any:
    """A recipe that trains the model in `work`/model in bf16. sections: its keys beside these, or in place of them."""
    from tailor.spec.recipe import Recipe

    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(work / "model")},
        "data": {"train": [{"path": "made"}], "max_length": LENGTH},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4, "schedule": "constant"},
        "train": {"batch_size": ROWS, "precision": "bf16"},
        "save": {"to": str(work / "run")},
    }
    return Recipe.model_validate(
        values | {name: {**values.get(name, {}), **section} for name, section in sections.items()}
    )


def train_by_tailor(
    work: Path, method: dict[str, Any], adapter: dict[str, Any] | None, steps: int, meter: Meter, **train: Any
) -> None:
    """The loop itself, on a host that does nothing but meter. train: keys of this section."""
    from tailor.data.facts import data_facts
    from tailor.data.token_store import TokenStore
    from tailor.plan import Hardware, build
    from tailor.train import loop

    recipe = recipe_of(work, model={"adapter": adapter}, method=method, train={"steps": steps, **train})
    config = json.loads((work / "model" / "config.json").read_text())
    facts = data_facts(TokenStore.open(str(work / "tokens")), recipe)
    hardware = Hardware("cpu", 16 * 2**30, bf16=True)
    plan = build(recipe, facts, config, hardware, run_url=str(work / "run"))
    loop.run(plan, MeteredHost(lambda _: meter.step()))


def train_by_trl(
    trainer: Any,
    config: Any,
    work: Path,
    method: str,
    steps: int,
    records: list[Any],
    meter: Meter,
    **own: Any,
) -> None:
    """One of TRL's trainers with its configuration, on records. own: settings of the configuration beside the shared ones."""
    from datasets import Dataset
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

    model, _ = hand_loaded(work, method)
    settings = trl_settings(
        config,
        work,
        steps,
        max_length=LENGTH,
        bf16=True,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        **own,
    )
    trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer(),
        callbacks=[Steps()],
    ).train()


def trl_settings(config: Any, work: Path, steps: int, **own: Any) -> Any:
    """A configuration of TRL for `steps` steps on the CPU that saves and reports nothing. own: its other settings."""
    return config(
        output_dir=str(work / "trl"),
        max_steps=steps,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        **own,
    )


def tokenizer() -> Any:
    """A word-level one whose words are the ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="t2", pad_token="t0", unk_token="t3")


def in_a_process(script: str, options: Sequence[str], who: Sequence[str]) -> dict[str, Any]:
    """One contender in a process of its own: the figures that it prints last."""
    command = [sys.executable, "-W", "ignore", script, *options, "--one", *who]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{', '.join(who)}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
