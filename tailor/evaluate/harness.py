"""Runs tasks of lm-eval (EleutherAI's evaluation harness) on a loaded model, and turns their metrics into sums over rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailor.errors import DataError
from tailor.evaluate.harness_report import Report, row_of
from tailor.evaluate.harness_tasks import (
    configs,
    fingerprint,
    import_functions,
    index,
    load,
    makes_data,
    require_lm_eval,
    saved,
)
from tailor.spec.rules.tasks.lm_eval import LENGTHS
from tailor.spec.tasks.lm_eval import LmEval

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

FEWSHOT_SEED = 1234
"""lm-eval's default seed for few-shot examples. Published results use it."""


def check(task: LmEval) -> None:
    """DataError for a task that lm-eval does not know or cannot load, that runs generated code, or that is multimodal.

    A task that makes its own data needs the tokenizer of the model: of it, only the definition is loaded.
    """
    for name in task.tasks:
        found = list(configs(index(task, name), name))
        if any(makes_data(config) for _, config in found):
            import_functions(name, [file for file, _ in found if file is not None])
        else:
            _refuse(load(task, name)["tasks"])


def _refuse(tasks: Mapping[str, Any]) -> None:
    for name, one in tasks.items():
        if getattr(one, "UNSAFE_CODE", False):
            raise DataError(
                f"lm_eval: {name} executes code that the model writes, which tailor does not do",
                hint="remove it, or run it with the lm_eval command in a sandbox",
            )
        if getattr(one, "MULTIMODAL", False):
            raise DataError(f"lm_eval: {name} is a multimodal task; only text is supported", hint="remove it")


def settings(task: LmEval) -> list[dict[str, Any]]:
    """The settings of each named task. They change with everything that changes an answer, the files in `include` too."""
    shared = task.model_dump(mode="json", exclude={"tasks", "name", "threshold"}) | {
        "files": fingerprint(task.include)
    }
    return [{**shared, "task": name} for name in task.tasks]


def run(loaded: Loaded, settings_of_task: dict[str, Any], batch_size: int) -> Report:
    """Run one named task on a loaded model. settings_of_task: one of `settings`. Raises DataError and ModelError."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from tailor.evaluate.generation import ready

    name = settings_of_task["task"]
    task = LmEval.model_validate(
        {
            "name": "lm_eval",
            "tasks": [name],
            **{key: settings_of_task[key] for key in settings_of_task if key not in ("task", "files")},
        }
    )
    if task.chat:
        loaded.require_template()
    with saved(loaded.tokenizer) as folder:
        found = load(task, name, folder)
    _refuse(found["tasks"])
    for one in found["tasks"].values():
        num_fewshot = task.num_fewshot
        if num_fewshot is None:
            num_fewshot = one.get_config("num_fewshot") or 0
        elif one.get_config("num_fewshot") == 0 and num_fewshot:
            raise DataError(
                f"lm_eval: num_fewshot has no effect on {one.config.task}, which is defined without few-shot examples",
                hint="remove num_fewshot",
            )
        one.set_config(key="num_fewshot", value=num_fewshot)
        one.set_fewshot_seed(seed=FEWSHOT_SEED)
    lengths = task.metadata.get(LENGTHS)
    with ready(loaded.model):
        model = HFLM(
            pretrained=loaded.model,
            tokenizer=AutoTokenizer.from_pretrained(loaded.tokenizer.name, trust_remote_code=False),
            batch_size=batch_size,
            # Without it, lm-eval would cut prompts that are longer than the model's positions.
            max_length=_longest(loaded, lengths) if isinstance(lengths, list) else None,
        )
        results = require_lm_eval().evaluate(
            lm=model,
            task_dict=found,
            **_chosen(found["tasks"], task.limit),
            bootstrap_iters=0,
            apply_chat_template=task.chat,
            fewshot_as_multiturn=task.chat,
        )
        cut = _cut(results["samples"], model)
    rows = [row_of(own, sample) for own, samples in results["samples"].items() for sample in samples]
    better = results["higher_is_better"].get(name) or {}
    own = results.get("groups", {}).get(name) or results["results"].get(name, {})
    reported = {
        key: {"value": value, "lower": better.get(key.split(",")[0]) is False}
        for key, value in own.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    versions = {own: results["versions"].get(own) for own in found["tasks"]}
    return {
        "task": name,
        "versions": versions,
        "reported": reported,
        "rows": rows,
        "cut": cut,
        "is_group": name in found["groups"],
    }


def _longest(loaded: Loaded, lengths: list[int]) -> int | None:
    """The longest prompt that lm-eval may pass on: None for the model's positions."""
    longest = max(lengths, default=0)
    return longest if loaded.context is not None and longest > loaded.context else None


def _chosen(tasks: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """The argument of `evaluate` that selects the first `limit` rows of each task, or of each length of its rows.

    The rows of RULER's tasks are sorted by length: the first ones alone would all have the shortest length.
    """
    by_length = {}
    for name, task in tasks.items():
        lengths = [doc.get("max_length") for doc in task.eval_docs] if makes_data(task.config) else []
        if limit is not None and len(set(lengths)) > 1:
            seen: Counter[Any] = Counter()
            by_length[name] = []
            for at, length in enumerate(lengths):
                seen[length] += 1
                if seen[length] <= limit:
                    by_length[name].append(at)
    if not by_length:
        return {"limit": limit}
    others = {name: list(range(min(limit or 0, len(task.eval_docs)))) for name, task in tasks.items()}
    return {"samples": others | by_length}


def _cut(samples: Mapping[str, list[dict[str, Any]]], model: Any) -> dict[str, int]:
    """Number of rows of each task whose prompts lm-eval shortened, because they are too long for the model."""
    counts = {}
    for task, own in samples.items():
        cut = set()
        for sample in own:
            prompt, more = sample["arguments"][0][:2] if len(sample["arguments"][0]) > 1 else ("", "")
            if not isinstance(prompt, str) or sample["doc_id"] in cut:
                continue
            if isinstance(more, Mapping):
                answer = more.get("max_gen_toks", model.max_gen_toks)
            else:
                answer = len(model.tok_encode(str(more), add_special_tokens=False)) - 1
            # A token has at least one byte: most prompts need no tokenizer.
            short = len(prompt.encode(errors="replace")) + answer <= model.max_length
            if not short and len(model.tok_encode(prompt)) + answer > model.max_length:
                cut.add(sample["doc_id"])
        if cut:
            counts[task] = len(cut)
    return counts
