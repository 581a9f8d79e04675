"""TRL's side of the comparison: the rows of a tailor run, in its batches, through TRL's own preparation and trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from cases import HERE, Case, Mistake
from common import trl_settings

import tailor
from tailor.data.facts import of_split
from tailor.data.token_store import TokenStore
from tailor.layout import PLAN
from tailor.methods.kto import kl_partners
from tailor.plan.batches import batch_spec
from tailor.spec.recipe import Recipe

IGNORED = -100


def train(folder: Path, case: Case, mistake: Mistake | None) -> list[dict[str, float]]:
    """TRL's log of every step. folder: of the case, with its rows and the run by tailor."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    recipe = tailor.Run(folder / "run").recipe().spec
    plan = json.loads((folder / "run" / PLAN).read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    steps = _rows_by_step(recipe, plan, ordered=mistake != "kl_batch")
    sizes = {len(step) for step in steps}
    assert len(sizes) == 1, "TRL has the same number of rows in every step"
    at_once = sizes.pop() // plan["accumulation"]

    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path)
    tokenizer.chat_template = (HERE / "chatml.jinja").read_text()
    trainer, config = _classes(case)
    made = trainer(
        model=_model(recipe, quantized=mistake != "unquantized"),
        args=trl_settings(
            config,
            folder,
            len(steps),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=plan["accumulation"],
            train_sampling_strategy="sequential",
            max_length=recipe.data.max_length,
            bf16=False,
            seed=recipe.train.seed,
            logging_steps=1,
            disable_tqdm=True,
            **_optimizer(recipe),
            **_of_method(recipe, factor=1.5 if mistake == "beta" else 1.0),
        ),
        train_dataset=Dataset.from_list([rows[number - 1] for step in steps for number in step]),
        processing_class=tokenizer,
        peft_config=_adapter(recipe),
    )
    if mistake == "mask":
        made.data_collator = _late(made.data_collator)
    if recipe.model.adapter is not None:
        _start_from_float32(made.model, recipe)
    made.train()
    return [record for record in made.state.log_history if "loss" in record]


def _rows_by_step(recipe: Recipe, plan: dict[str, Any], *, ordered: bool) -> list[list[int]]:
    """The numbers of the rows of every step, from 1. ordered: for KTO, so that TRL's KL batch has tailor's pairs."""
    split = TokenStore.open(plan["tokens_url"]).split("train")
    batches = of_split(split, batch_spec(recipe))
    steps = []
    for step in range(plan["steps"]):
        batch = batches.batch(step)
        examples = [example for row in batch for example in row if split.position[example] == 0]
        if recipe.method.name == "kto" and ordered:
            partners = kl_partners(batch, len(split))
            examples = examples[:1]
            while len(examples) < len(partners):
                examples.append(partners[examples[-1]])
            examples.reverse()  # TRL gives a prompt the answer of the row before it, and the first one that of the last
        steps.append([int(split.row[example]) for example in examples])
    return steps


def _classes(case: Case) -> tuple[Any, Any]:
    """A trainer of TRL and its configuration."""
    import trl
    from trl.experimental import cpo

    config = case.trainer.replace("Trainer", "Config")
    module = cpo if case.trainer == "CPOTrainer" else trl
    return getattr(module, case.trainer), getattr(module, config)


def _model(recipe: Recipe, *, quantized: bool) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if recipe.model.quantize is not None and quantized:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.model.quantize.type,
            bnb_4bit_use_double_quant=recipe.model.quantize.double,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return AutoModelForCausalLM.from_pretrained(
        recipe.model.path, dtype=torch.float32, quantization_config=quantization
    )


def _adapter(recipe: Recipe) -> Any:
    from peft import LoraConfig

    if (adapter := recipe.model.adapter) is None:
        return None
    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _start_from_float32(model: Any, recipe: Recipe) -> None:
    """PEFT's initial adapter of the recipe's seed in float32, for TRL rounds that of a quantized base to bf16."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(recipe.model.path, dtype=torch.float32)
    torch.manual_seed(recipe.train.seed)
    start = get_peft_model_state_dict(get_peft_model(base, _adapter(recipe)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    set_peft_model_state_dict(model, start)


def _optimizer(recipe: Recipe) -> dict[str, Any]:
    optim = recipe.optim
    assert optim.optimizer == "adamw"
    return {
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": optim.schedule,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "max_grad_norm": optim.max_grad_norm,
    }


def _of_method(recipe: Recipe, *, factor: float) -> dict[str, Any]:
    """TRL's settings of the method. factor: of beta."""
    method: Any = recipe.method
    match method.name:
        case "sft":
            return {"assistant_only_loss": True}
        case "kto":
            weights = {
                "desirable_weight": method.desirable_weight,
                "undesirable_weight": method.undesirable_weight,
            }
            return {"beta": method.beta * factor, **weights}
    shared = {
        "beta": method.beta * factor,
        "label_smoothing": method.label_smoothing,
        "loss_type": method.loss,
    }
    if method.loss == "simpo":
        return {**shared, "simpo_gamma": method.gamma, "cpo_alpha": method.sft_weight or 0.0}
    return shared


def _late(collator: Any) -> Any:
    """A collator whose supervised tokens are one token later."""

    def collate(examples: list[dict[str, Any]]) -> Any:
        batch = collator(examples)
        for name in ("labels", "completion_mask"):
            if name in batch:
                batch[name] = _shifted(batch[name], batch["input_ids"], batch["attention_mask"], name)
        return batch

    return collate


def _shifted(values: torch.Tensor, ids: torch.Tensor, is_token: torch.Tensor, name: str) -> torch.Tensor:
    chosen = values != IGNORED if name == "labels" else values.bool()  # [B, T]
    late = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], dim=1) & is_token.bool()
    return torch.where(late, ids, IGNORED) if name == "labels" else late.to(values.dtype)
