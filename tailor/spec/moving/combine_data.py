"""Keys that follow from several arguments together: sources, evaluations, checkpoints, long contexts, embeddings."""

from __future__ import annotations

from typing import Any

from tailor.spec.moving.draft import EACH, Draft, boolean, number
from tailor.spec.moving.sources import EVALUATION, TRAIN, sliced

_DEFAULT_EVERY = 100
_ALL_ROWS = 10_000_000
"""A limit that means none, such as GritLM's default of 100 000 000."""


def sources(draft: Draft) -> None:
    """Settings that apply to every source."""
    for source in draft.values.get(TRAIN) or []:
        hub = str(source.get("path")).startswith("hf://")
        if hub and draft.facts.get("subset"):
            source["subset"] = draft.facts["subset"]
        if hub and draft.facts.get("split") and (said := sliced(source, str(draft.facts["split"]))):
            draft.remarks[TRAIN] = said
        for key in ("limit", "samples"):
            rows = number(draft.facts.get(key))
            if rows and rows < _ALL_ROWS:
                source[key] = int(rows)
        source |= {
            fact.removeprefix(EACH): draft.facts[fact] for fact in draft.facts if fact.startswith(EACH)
        }
        if draft.facts.get("text_field") and draft.values.get("method.name") in ("sft", "pretrain"):
            source["format"] = "text"
            if draft.facts["text_field"] != "text":
                source["columns"] = {"text": draft.facts["text_field"]}
        if draft.facts.get("columns"):
            source["columns"] = draft.facts["columns"]
            source.pop("format", None)
    if "limit" in draft.facts:
        for argument in draft.origins.get("=limit", []):
            if argument.name in draft.answers and not draft.answers[argument.name].keys:
                draft.answers[argument.name].keys.append(f"{TRAIN}.N.limit")
    if draft.trainer.name == "llama-factory":
        draft.answer("dataset_dir", "unneeded", "it is in the paths of data.train")
    draft.answer("data_root", "unneeded", "it is in the paths of data.train")
    unique: list[Any] = []
    for source in draft.values.get(TRAIN) or []:
        if source not in unique:
            unique.append(source)
    if TRAIN in draft.values:
        draft.values[TRAIN] = unique


def evaluation(draft: Draft) -> None:
    strategy = str(draft.facts.get("eval_strategy") or "").lower()
    steps = number(draft.facts.get("eval_steps"))
    per_epoch = number(draft.facts.get("evaluate_per_epoch"))
    test = draft.facts.get("test_split")
    train = draft.values.get(TRAIN) or []
    if (
        strategy in ("steps", "epoch")
        and test
        and EVALUATION not in draft.values
        and "data.holdout" not in draft.values
        and train
    ):
        draft.derive(
            EVALUATION,
            [
                {
                    **{
                        key: train[0][key]
                        for key in ("path", "format", "columns", "subset")
                        if key in train[0]
                    },
                    "split": test,
                }
            ],
            "test_split",
        )
    draft.answer("test_split", "unneeded", "there is no evaluation during training")
    draft.answer("holdout", "unneeded", "no rows are kept for evaluation")
    if EVALUATION in draft.values and "data.holdout" in draft.values:
        draft.drop("data.holdout", "data.evaluation has the rows")
    rows = EVALUATION in draft.values or "data.holdout" in draft.values
    facts = ("eval_strategy", "eval_steps", "evaluate_per_epoch")
    on = strategy in ("steps", "epoch") or per_epoch or (steps and "eval_strategy" not in draft.facts)
    if on and rows and "evaluate.every" not in draft.values:
        every = int(steps) if steps and steps >= 1 and strategy != "epoch" else _DEFAULT_EVERY
        remark = "" if every == steps else "set it: the number of steps of an epoch is not known here"
        draft.derive("evaluate.every", every, *[fact for fact in facts if fact in draft.facts], remark=remark)
    for fact in facts:
        draft.answer(
            fact,
            "unneeded",
            "there are no evaluation rows" if on and not rows else "no evaluations during training",
        )
    if "evaluate.every" not in draft.values:
        for key in ("save.best", "train.early_stopping"):
            draft.drop(key, "it needs evaluations during training: evaluate.every")
    for key in [one for one in draft.values if one.startswith("save.best") and not draft.values[one]]:
        draft.drop(key, "off")


def saving(draft: Draft) -> None:
    strategy = str(draft.facts.get("save_strategy") or "steps").lower()
    steps = number(draft.facts.get("save_steps"))
    if "save.every" not in draft.values and steps and steps >= 1 and strategy == "steps":
        draft.derive("save.every", int(steps), "save_steps", "save_strategy")
    if strategy == "best" and "evaluate.every" in draft.values:
        draft.derive("save.best", True, "save_strategy")
    why = "one checkpoint, after the last step"
    if strategy == "epoch" or (steps and 0 < steps < 1):
        why = "save.every counts steps, and those of an epoch are not known here: one checkpoint, after the last step"
    for fact in ("save_strategy", "save_steps"):
        draft.answer(fact, "unneeded", why)
    keep = number(draft.values.get("save.keep"))
    if keep is not None and keep < 1:
        draft.drop("save.keep", "at least one checkpoint is kept")
    if "export.push_to_hub" in draft.values and boolean(draft.facts.get("push")) is False:
        draft.drop("export", "nothing is pushed")
    why = (
        "nothing is pushed"
        if not boolean(draft.facts.get("push"))
        else "write export.push_to_hub: owner/name"
    )
    draft.answer("push", "unneeded" if not boolean(draft.facts.get("push")) else "unsupported", why)
    if "export.push_to_hub" not in draft.values:
        draft.drop("export", "nothing is pushed")


def tracking(draft: Draft) -> None:
    if boolean(draft.facts.get("wandb")) is False or ("track.wandb.project" not in draft.values):
        draft.drop("track.wandb", "W&B needs a project")
    draft.answer("wandb", "unneeded", "track.wandb is off")
    if "track.mlflow.experiment" not in draft.values:
        draft.drop("track.mlflow", "MLflow needs an experiment")


def rope(draft: Draft) -> None:
    theta, method = number(draft.facts.get("rope_theta")), draft.facts.get("rope_method")
    facts = ("rope_theta", "rope_method", "rope_factor", "rope_length")
    if theta and not method:
        length = number(draft.facts.get("rope_length")) or number(draft.values.get("data.max_length")) or 4096
        draft.derive(
            "model.rope",
            {"name": "theta", "theta": theta, "length": int(length)},
            "rope_theta",
            "rope_length",
        )
    for fact in facts:
        on = method or fact == "rope_length"
        draft.answer(
            fact,
            "unsupported" if on else "unneeded",
            "write model.rope with original_length, the base model's own length" if on else "off",
        )


def beacon(draft: Draft) -> None:
    if not boolean(draft.facts.get("beacon")):
        draft.drop("model.beacon", "there are no beacons")
        draft.answer("beacon", "unneeded", "there are no beacons")
        return
    if not any(key.startswith("model.beacon.") for key in draft.values):
        draft.derive("model.beacon", {}, "beacon")
    for argument in draft.origins.get("=beacon", []):
        if argument.name in draft.answers:
            draft.answers[argument.name].keys.append("model.beacon")
    draft.values["data.pack"] = False
    draft.remarks["data.pack"] = "beacons compress one document at a time"
    draft.values.setdefault("train.micro_batch_size", 1)


def embedding(draft: Draft) -> None:
    if draft.values.get("method.name") != "gritlm":
        return
    passage, own = (
        number(draft.values.get("method.max_passage_length")),
        number(draft.facts.get("generative_length")),
    )
    mode = draft.values.get("method.mode", "unified")
    longest = [int(one) for one in (passage, number(draft.values.get("method.max_query_length")), own) if one]
    if longest:
        draft.derive(
            "data.max_length",
            int(own or max(longest)) if mode == "generative" else max(longest),
            "generative_length",
        )
    draft.answer("generative_length", "unneeded", "data.max_length is the longest text")
    if mode == "generative":
        for key in [one for one in draft.values if one.startswith("method.")]:
            if key.split(".")[1] not in (
                "name",
                "mode",
                "generative_normalization",
                "generative_weight",
                "generative_batch_size",
            ):
                draft.drop(key, "mode generative embeds nothing")
    if mode == "embedding":
        for key in ("method.generative_normalization", "method.generative_weight"):
            draft.drop(key, "mode embedding generates nothing")
    if mode != "embedding":
        draft.values.setdefault("data.template", "gritlm")
        if draft.values.get("method.generative_normalization") == "mixed":
            per_device = number(draft.facts.get("generative_per_device")) or number(
                draft.facts.get("per_device")
            )
            if per_device:
                draft.derive(
                    "train.micro_batch_size",
                    int(per_device),
                    "generative_per_device" if "generative_per_device" in draft.facts else "per_device",
                )


def rows(draft: Draft) -> None:
    """What other trainers do with rows unless they say otherwise: one row per sequence, and cut what is too long."""
    name = draft.values.get("method.name")
    packs = draft.values.get("data.pack")
    if packs is None and draft.trainer.name not in ("torchtune",) and name not in ("gritlm", "pretrain"):
        draft.put("data.pack", False, remark=f"{draft.trainer.title} trains one example per row")
    if name == "gritlm":
        draft.drop("data.pack", "GRIT batches are not packed")
    if name == "pretrain" and (draft.facts.get("beacon") or draft.trainer.name == "long-llm"):
        draft.put("method.documents", "isolate", remark="documents are not joined")
    if name == "pretrain" and packs is False and draft.trainer.name == "llama-factory":
        draft.put("method.documents", "isolate", remark="packing: false: one document per row")
    if "data.on_long" not in draft.values and draft.trainer.name not in ("axolotl", "torchtune"):
        draft.put("data.on_long", "truncate", remark=f"{draft.trainer.title} cuts long rows")
    if (
        draft.trainer.name == "trl"
        and name == "sft"
        and "method.train_on" not in draft.values
        and not draft.facts.get("text_field")
    ):
        draft.put(
            "method.train_on",
            "everything",
            remark="default of TRL for conversations; rows with prompt and completion learn the response: `assistant`",
        )
