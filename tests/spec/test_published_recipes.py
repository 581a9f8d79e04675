"""The recipes of published runs have the published settings: every flag of the command is compared, or named as no setting."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tailor.spec.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
LONG_LLM = "FlagOpen/FlagEmbedding, research/Long_LLM"
DATA = "hf://datasets/namespace-Pt/long-llm-data"
"""The files of the commands' `long-llm:`."""

BEACON = """--model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct --max_length 20000 --group_by_stride strict
--enable_beacon --beacon_window 1024 --beacon_stride 1024 --beacon_attn full-coverage --beacon_attend_prev True
--beacon_sink_size 1 --beacon_ratio_mix step-random --beacon_param q k v --beacon_pos interleave
--attn_impl flash_attention_2 --gradient_checkpointing --use_reentrant False --save_only_model --save_strategy epoch
--num_train_epochs 1 --logging_steps 50 --bf16 --deepspeed data/deepspeed/stage2.json"""
TRAINER = "--lr_scheduler_type linear --weight_decay 0.0 --warmup_steps 0 --max_grad_norm 1.0 --adam_beta1 0.9 --adam_beta2 0.999"
"""Defaults of transformers' TrainingArguments, which the commands leave as they are."""

KEYS: dict[str, tuple[str, Any]] = {
    "enable_beacon": ("model.beacon", dict),
    "beacon_window": ("model.beacon.window", int),
    "beacon_sink_size": ("model.beacon.sink", int),
    "beacon_ratio": ("model.beacon.ratios", list),
    "beacon_ratio_mix": ("model.beacon.draw", str),
    "beacon_param": ("model.beacon.projections", list),
    "model_name_or_path": ("model.path", str),
    "rope_theta": ("model.rope.theta", float),
    "load_in_4_bit": ("model.quantize.type", "nf4"),
    "double_quant": ("model.quantize.double", True),
    "lora_rank": ("model.adapter.rank", int),
    "lora_alpha": ("model.adapter.alpha", float),
    "lora_dropout": ("model.adapter.dropout", float),
    "lora_targets": ("model.adapter.target_modules", list),
    "lora_extra_params": ("model.adapter.modules_to_save", list),
    "min_length": ("data.min_length", int),
    "max_length": ("data.max_length", int),
    "group_by_length": ("data.pack", False),
    "group_by_stride": ("data.pack", False),
    "learning_rate": ("optim.learning_rate", float),
    "lr_scheduler_type": ("optim.schedule", str),
    "warmup_ratio": ("optim.warmup_ratio", float),
    "weight_decay": ("optim.weight_decay", float),
    "max_grad_norm": ("optim.max_grad_norm", float),
    "optim": ("optim.optimizer", {"paged_adamw_32bit": "paged_adamw"}),
    "adam_beta1": ("optim.betas.0", float),
    "adam_beta2": ("optim.betas.1", float),
    "num_train_epochs": ("train.epochs", float),
    "max_steps": ("train.steps", int),
    "global_batch_size": ("train.batch_size", int),
    "bf16": ("train.precision", "bf16"),
    "gradient_checkpointing": ("train.activation_checkpointing", True),
    "seed": ("train.seed", int),
    "save_steps": ("save.every", int),
    "save_total_limit": ("save.keep", int),
    "eval_steps": ("evaluate.every", int),
    "beta": ("method.beta", float),
    "max_prompt_length": ("method.max_prompt_length", int),
    "mode": ("method.mode", str),
    "temperature": ("method.temperature", float),
    "train_group_size": ("method.group_size", int),
    "negatives_cross_device": ("method.negatives", "global"),
    "query_max_len": ("method.max_query_length", int),
    "passage_max_len": ("method.max_passage_length", int),
    "pooling_method": ("method.pooling", str),
    "attn": ("method.attention", {"bbcc": "bidirectional"}),
    "embedding_batch_size": ("method.embedding_batch_size", int),
    "loss_gen_type": ("method.generative_normalization", str),
    "generative_batch_size": ("method.generative_batch_size", int),
}
"""Flag -> the recipe's key, and the type of the value or the value that the flag means."""
NOT_A_SETTING = {
    "beacon_stride": "always the window",
    "beacon_attn": "beacons read their window and the whole memory: the only way here",
    "beacon_attend_prev": "as beacon_attn",
    "beacon_pos": "beacons are interleaved: the only way here",
    "attn_implementation": "the kernel, not the result",
    "attn_impl": "the kernel, not the result",
    "use_reentrant": "how the memory is saved, not the result",
    "deepspeed": "sharding, which does not change the curve",
    "logging_steps": "every step is logged",
    "save_only_model": "the artifact has no optimizer state",
    "save_strategy": "checkpoints are extra; the artifact is saved at the end",
    "evaluation_strategy": "the command has no evaluation rows",
    "warmup_steps": "none is the default",
    "lora_tune": "model.adapter",
    "normalized": "embeddings are always normalized",
    "dataloader_drop_last": "every step has the global batch",
    "use_unique_indices": "no row is repeated within an epoch",
    "no_gen_gas": "the micro-batch does not change the loss",
    "chat_template": "the model's own",
}


@dataclass(frozen=True)
class Published:
    """A published command. source: repository and file; flags: as there, and defaults of its code.

    differs: keys with another value here -> words of the recipe's comment that say so.
    """

    source: str
    flags: str
    train: tuple[str, ...] = ()
    differs: dict[str, str] = field(default_factory=dict)


PUBLISHED = {
    "llama3-8b-beacon": Published(
        f"{LONG_LLM}/activation_beacon/examples/training.md, Llama-3, Pretrain",
        f"{BEACON} --min_length 2400 --beacon_ratio 2 4 8 16 32 --evaluation_strategy steps {TRAINER} "
        "--learning_rate 5e-5 --global_batch_size 8",
        train=("long-llm:redpajama/train.json",),
    ),
    "llama3-8b-beacon-chat": Published(
        f"{LONG_LLM}/activation_beacon/examples/training.md, Llama-3, Finetune",
        f"{BEACON} --min_length 7200 --beacon_ratio 2 4 8 --learning_rate 1e-5 --chat_template llama-3 {TRAINER} "
        "--global_batch_size 8",
        train=(
            "long-llm:gpt/one_detail_book.train.16K.json",
            "long-llm:gpt/one_detail_paper.train.16K.json",
            "long-llm:longalpaca/train.json",
            "long-llm:booksum/train.16K.json",
            "long-llm:needle/train.16K.json",
            "long-llm:redpajama/train.json[5000]",
        ),
    ),
    "llama3-8b-80k-qlora": Published(
        f"{LONG_LLM}/longllm_qlora/README.md; src/args.py and main/train.py for the adapter",
        """--model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct --max_length 81920 --group_by_length
        --rope_theta 200e6 --attn_impl flash_attention_2 --gradient_checkpointing --use_reentrant True
        --learning_rate 5e-5 --num_train_epochs 1 --save_only_model --save_strategy epoch --logging_steps 5 --bf16
        --lora_tune --lora_extra_params embed_tokens --load_in_4_bit --double_quant --chat_template llama-3
        --lora_rank 32 --lora_alpha 16 --lora_dropout 0 --lora_targets q_proj k_proj v_proj o_proj
        --global_batch_size 8 """
        + TRAINER,
        train=(
            "long-llm:gpt/one_detail_book.train.64K.json",
            "long-llm:gpt/one_detail_paper.train.64K.json",
            "long-llm:gpt/multi_detail_book.train.json",
            "long-llm:gpt/multi_detail_paper_short.train.json",
            "long-llm:gpt/multi_detail_paper_long.train.json",
            "long-llm:gpt/bio_book.train.json",
            "long-llm:longalpaca/train.json",
            "long-llm:redpajama/train.json[5000]",
        ),
    ),
    "zephyr-7b-dpo-qlora": Published(
        "huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo/config_qlora.yaml; README.md for the one GPU",
        """--model_name_or_path alignment-handbook/zephyr-7b-sft-qlora --load_in_4_bit --lora_rank 128 --lora_alpha 128
        --lora_dropout 0.05 --lora_targets q_proj k_proj v_proj o_proj gate_proj up_proj down_proj --bf16 --beta 0.01
        --eval_steps 100 --global_batch_size 16 --gradient_checkpointing --learning_rate 5e-6
        --lr_scheduler_type cosine --max_length 1024 --max_prompt_length 512 --num_train_epochs 1
        --optim paged_adamw_32bit --save_steps 100 --save_total_limit 1 --seed 42 --warmup_ratio 0.1
        --weight_decay 0.0 --max_grad_norm 1.0 --adam_beta1 0.9 --adam_beta2 0.999""",
        differs={"model.path": "starts from the full SFT model"},
    ),
    "gritlm-7b-unified": Published(
        "ContextualAI/gritlm, scripts/training/train_gritlm_7b.sh; gritlm/training/run.py for the adapter",
        """--model_name_or_path mistralai/Mistral-7B-v0.1 --learning_rate 2e-5 --lr_scheduler_type linear
        --warmup_ratio 0.03 --max_steps 1253 --embedding_batch_size 2048 --generative_batch_size 256 --temperature 0.02
        --train_group_size 2 --negatives_cross_device --query_max_len 256 --passage_max_len 2048 --mode unified --bf16
        --normalized --dataloader_drop_last --use_unique_indices --no_gen_gas --loss_gen_type mixed --logging_steps 1
        --attn_implementation sdpa --save_steps 5000 --pooling_method mean --attn bbcc --gradient_checkpointing --lora_rank 16 --lora_alpha 64 --lora_dropout 0.1
        --weight_decay 0.0 --max_grad_norm 1.0 --adam_beta1 0.9 --adam_beta2 0.999""",
        differs={
            "method.generative_normalization": "generative_normalization: mixed",
            "save.every": "checkpoints more often",
        },
    ),
}


def parsed(flags: str) -> dict[str, list[str]]:
    """Flag -> its values."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(flags):
        if word.startswith("--"):
            name = word[2:]
            assert name not in found, name
            found[name] = []
        else:
            found[name].append(word)
    return found


def value_of(recipe: Any, key: str) -> Any:
    for step in key.split("."):
        recipe = recipe[int(step)] if step.isdigit() else getattr(recipe, step)
    return recipe


def expected(flag: str, values: list[str]) -> Any:
    meaning = KEYS[flag][1]
    if meaning is list:
        return [int(value) if value.isdigit() else value for value in values]
    if isinstance(meaning, type):
        (value,) = values
        return meaning(value)
    return meaning[values[0]] if isinstance(meaning, dict) else meaning


def differences(recipe: Any, published: Published) -> dict[str, str]:
    """Key -> flag, of every setting with another value than the published one."""
    found = {}
    for flag, values in parsed(published.flags).items():
        if flag in NOT_A_SETTING:
            continue
        key = KEYS[flag][0]
        own = value_of(recipe, key)
        if own is None if KEYS[flag][1] is dict else own != expected(flag, values):
            found[key] = flag
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_setting_is_in_the_recipe(name: str) -> None:
    path, published = RECIPES / f"{name}.yaml", PUBLISHED[name]
    recipe = load_recipe(path, check_files=False)
    assert differences(recipe, published).keys() == published.differs.keys(), published.source
    comment = " ".join(path.read_text().split("\nmodel:")[0].replace("\n#", " ").split())
    assert [words for words in published.differs.values() if words not in comment] == []
    named = published.source.split(", ")[1].split(";")[0].removeprefix("research/")
    assert named in comment, "the recipe names its source"
    if published.train:
        sources = [
            source.path.replace(f"{DATA}/", "long-llm:") + (f"[{source.limit}]" if source.limit else "")
            for source in recipe.data.train
        ]
        assert tuple(sources) == published.train


def test_control_other_values_are_noticed() -> None:
    recipe = load_recipe(RECIPES / "llama3-8b-beacon.yaml", check_files=False)
    assert recipe.model.beacon is not None
    other = recipe.model_copy(deep=True, update={"data": recipe.data.model_copy(update={"min_length": None})})
    other.model.beacon.__dict__.update(sink=0, ratios=[2, 4, 8])
    assert differences(other, PUBLISHED["llama3-8b-beacon"]) == {
        "model.beacon.sink": "beacon_sink_size",
        "model.beacon.ratios": "beacon_ratio",
        "data.min_length": "min_length",
    }


def test_no_other_recipe_says_that_it_is_published() -> None:
    for path in RECIPES.glob("*.yaml"):
        words = path.read_text().split("\nmodel:")[0]
        if path.stem not in PUBLISHED:
            assert "ublished" not in words, path
