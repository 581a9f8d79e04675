"""Firefly's JSON, and a QLoRA trainer of questions and answers."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, table, taken, unlike, unneeded
from tailor.spec.trainers.transformers import DEFAULTS, LAUNCHER, TRAINING
from tailor.spec.trainers.values import FIREFLY_TEMPLATES, METHODS, TEMPLATES

FIREFLY = Trainer(
    "firefly",
    "Firefly",
    "JSON (`train_args`), with its DeepSpeed JSON",
    table(
        TRAINING.values(),
        LAUNCHER.values(),
        taken("model_name_or_path", "model.path"),
        taken(
            "train_file",
            "data.train",
            "rows of human/assistant pairs (`conversation`) have the format `firefly`",
            convert="firefly_rows",
        ),
        taken("eval_file", "data.evaluation", convert="firefly_evaluation"),
        taken(
            "template_name",
            "data.template",
            "or the model's own; `tailor init --templates` lists the built-in ones",
            values={
                **TEMPLATES,
                **FIREFLY_TEMPLATES,
                "qwen": unlike("chatml", "the system turn `You are a helpful assistant.` is not added"),
            },
        ),
        taken("max_seq_length", "data.max_length"),
        taken("max_prompt_length", "method.max_prompt_length"),
        taken("beta", "method.beta"),
        taken("task_type", "method.name", "`pretrain`, `sft` or `dpo`", values=METHODS),
        taken(
            "train_mode",
            "=adapter",
            "`qlora`: model.quantize and model.adapter; `lora`: model.adapter; `full`: none of them",
            convert="adapter",
        ),
        taken("lora_rank", "model.adapter.rank"),
        taken("lora_alpha", "model.adapter.alpha"),
        taken("lora_dropout", "model.adapter.dropout"),
        unneeded("tokenize_num_workers", "all cores, once"),
        unneeded("use_unsloth", "the loss is tiled and activations are recomputed by own code"),
    ),
    marks={
        "train_file": 5,
        "train_mode": 5,
        "task_type": 3,
        "template_name": 4,
        "max_seq_length": 2,
        "tokenize_num_workers": 4,
        "model_name_or_path": 1,
    },
    defaults={
        **DEFAULTS,
        "train_mode": "qlora",
        "task_type": "sft",
        "lora_rank": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
    },
    remark="[llama2-7b-lima-qlora.yaml](../recipes/llama2-7b-lima-qlora.yaml), [gemma-2b-lima-qlora.yaml](../recipes/gemma-2b-lima-qlora.yaml), "
    "[mamba-1.4b-lima.yaml](../recipes/mamba-1.4b-lima.yaml), [mamba-2.8b-lima.yaml](../recipes/mamba-2.8b-lima.yaml), "
    "[bloom-1b1-full-deepspeed.yaml](../recipes/bloom-1b1-full-deepspeed.yaml) and [bloom-1b1-pretrain.yaml](../recipes/bloom-1b1-pretrain.yaml) are such runs. "
    "The script that merges adapters is `tailor merge RUN`. [Models](models.md#what-all-linear-means) lists what is adapted and quantized.",
)

QLORA = Trainer(
    "qlora",
    "QLoRA of Llama 3.2 3B on questions and answers",
    "",
    table(
        taken("r", "model.adapter.rank"),
        taken("alpha", "model.adapter.alpha"),
        taken("dropout", "model.adapter.dropout"),
        taken(
            "target_modules",
            "model.adapter.target_modules",
            "the default `all-linear` is q/k/v/o/gate/up/down on a Llama",
        ),
        taken("load_in_4bit", "model.quantize.type", "`nf4`"),
        taken("double_quantization", "model.quantize.double", "on by default"),
        taken("bf16", "train.precision", "`auto` selects bf16 where the hardware supports it"),
        taken("max_seq_length", "data.max_length"),
        taken("--cv-weight --arxiv-weight", "data.train.N.weight", "how often an epoch shows a source"),
        taken("test_size", "data.holdout", "0.1, by content"),
        taken(
            "evaluate()",
            "evaluate.every",
            "loss, perplexity and token accuracy; a finished run: `tailor evaluate`",
        ),
        taken(
            "curated_questions",
            "evaluate.final.tasks",
            "the task `facts`: expected facts per question; the task `rouge` with bounds in `fail_if`",
        ),
        unneeded("QLoRATrainer(config)", "in Python: `tailor.load(…).run()`: [python.md](python.md)"),
        unneeded("dataset_statistics", "`tailor data report`"),
        unneeded("merged_model", "`tailor merge RUN`, into the weights that training used, verified"),
        unneeded("save_model()", "the run's `adapter/` is always written, with tokenizer and configuration"),
        unneeded("log_file", "`metrics.jsonl` and TensorBoard files are always written"),
    ),
    remark="[recipes/llama3.2-3b-qlora.yaml](../recipes/llama3.2-3b-qlora.yaml) is this run. Its other arguments are those of TrainingArguments.",
)
