"""Keys of the method that follow from several arguments together, and what the trainers of a method have by default."""

from __future__ import annotations

import re

from tailor.spec.methods.registry import METHODS
from tailor.spec.moving.draft import Draft, boolean

_ORPO = re.compile(r"(?<![a-z])orpo(?![a-z])", re.IGNORECASE)
_NO_DROPOUT = "preference tuning there turns all dropout off (disable_dropout)"


def method(draft: Draft) -> None:
    """The method, where no argument or several ones say it."""
    if draft.trainer.name == "gritlm":
        draft.values.setdefault("method.name", "gritlm")
    if draft.facts.get("preference") and draft.values.get("method.name") in (None, "sft"):
        draft.derive("method.name", "dpo", "preference")
    if "method.name" not in draft.values and draft.trainer.name in ("trl", "unsloth", "sft-script"):
        if draft.values.keys() & {"method.desirable_weight", "method.undesirable_weight"}:
            draft.put("method.name", "kto", remark="its weights are those of KTO")
        elif draft.values.keys() & {
            "method.loss",
            "method.beta",
            "method.gamma",
            "method.max_prompt_length",
            "method.sft_weight",
        }:
            draft.put("method.name", "dpo", remark="its arguments are those of preference tuning")
            if "method.loss" not in draft.values and _is_orpo(draft):
                draft.put(
                    "method.loss", "orpo", remark="its names say ORPO, whose file has no argument for it"
                )
    name = draft.values.setdefault("method.name", "sft")
    if "optim.learning_rate" not in draft.values and draft.trainer.name == "trl":
        draft.put("optim.learning_rate", 2e-5 if name == "sft" else 1e-6, remark="default of TRL")
    fields = METHODS.get(name).model_fields
    for key in [one for one in draft.values if one.startswith("method.")]:
        if key.split(".")[1] not in fields:
            draft.drop(key, f"{name} does not have {key}")


def _is_orpo(draft: Draft) -> bool:
    """Whether the names in a file of the alignment handbook say that it is for its script of ORPO."""
    named = [draft.folder, *(str(draft.given(name)) for name in ("output_dir", "hub_model_id", "run_name"))]
    return any(_ORPO.search(name) for name in named)


def preference(draft: Draft) -> None:
    """Settings that the trainers of pairs have by default."""
    if draft.values.get("method.name") not in ("dpo", "kto"):
        return
    if draft.given("label_smoothing_factor") is not None:
        draft.drop("method.label_smoothing", "label_smoothing_factor is that of next-token losses")
    if boolean(draft.given("disable_dropout")) is not False:
        draft.drop("model.adapter.dropout", _NO_DROPOUT)
        if "model.base_dropout" not in draft.values:
            draft.put("model.base_dropout", 0, remark=_NO_DROPOUT)
    if (
        draft.values.get("method.loss") == "simpo"
        and draft.trainer.name in ("axolotl", "trl")
        and "method.sft_weight" not in draft.values
    ):
        draft.put("method.sft_weight", 1.0, remark="default of TRL's CPOTrainer: cpo_alpha: 1.0")


def torchtune(draft: Draft) -> None:
    """What torchtune's files leave to its libraries: the weight decay of AdamW, and rows of any length."""
    if draft.trainer.name != "torchtune":
        return
    if "adamw" in str(draft.values.get("optim.optimizer", "")) and "optim.weight_decay" not in draft.values:
        draft.put("optim.weight_decay", 0.01, remark="default of AdamW in PyTorch and bitsandbytes")
    if "data.max_length" not in draft.values:
        draft.put("data.max_length", 2048, remark="torchtune has no limit: raise it if rows are longer")
        answer = draft.answers.get("tokenizer.max_seq_len")
        if answer is not None:
            answer.outcome, answer.text = "unsupported", "a recipe has a limit: see data.max_length"
