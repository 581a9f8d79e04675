"""Runs tasks of lm-eval (EleutherAI's evaluation harness) on a loaded model, and turns their metrics into sums over rows."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import DataError, TailorError
from tailor.evaluate.figures import PerRow, exponential, mean, ratio
from tailor.spec.tasks.lm_eval import LmEval

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

FEWSHOT_SEED = 1234
"""lm-eval's default seed for few-shot examples. Published results use it."""
ROLLING = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}
"""Metrics whose rows are (log-likelihood, number of words or bytes) -> divisor of the log-likelihood, such as ln 2 for bits."""

Report = dict[str, Any]
"""The results of one named task: `task`, `versions`, the metrics `reported` by lm-eval, and `rows`."""


def require_lm_eval() -> Any:
    """The package lm_eval. TailorError when it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise TailorError(
            "the task lm_eval needs the package lm-eval, which is not installed",
            hint="pip install 'tailor[lm-eval]', or remove the task lm_eval",
        ) from None
    return lm_eval


def check(task: LmEval) -> None:
    """DataError for a task that lm-eval does not know or cannot load, that runs generated code, or that is multimodal."""
    for name in task.tasks:
        found = _load(task, name)["tasks"]
        for own, one in found.items():
            if getattr(one, "UNSAFE_CODE", False):
                raise DataError(
                    f"lm_eval: {own} executes code that the model writes, which tailor does not do",
                    hint="remove it, or run it with the lm_eval command in a sandbox",
                )
            if getattr(one, "MULTIMODAL", False):
                raise DataError(
                    f"lm_eval: {own} is a multimodal task; only text is supported", hint="remove it"
                )


def settings(task: LmEval) -> list[dict[str, Any]]:
    """The settings of each named task. They change with everything that changes an answer, the files in `include` too."""
    shared = task.model_dump(mode="json", exclude={"tasks", "name"}) | {"files": _fingerprint(task.include)}
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
    found = _load(task, name)
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
    with ready(loaded.model):
        model = HFLM(
            pretrained=loaded.model,
            tokenizer=AutoTokenizer.from_pretrained(loaded.tokenizer.name, trust_remote_code=False),
            batch_size=batch_size,
        )
        results = require_lm_eval().evaluate(
            lm=model,
            task_dict=found,
            limit=task.limit,
            bootstrap_iters=0,
            apply_chat_template=task.chat,
            fewshot_as_multiturn=task.chat,
        )
    rows = [_row(own, sample) for own, samples in results["samples"].items() for sample in samples]
    better = results["higher_is_better"].get(name) or {}
    reported = {
        key: {"value": value, "lower": better.get(key.split(",")[0]) is False}
        for key, value in (results["groups"] if name in results.get("groups", {}) else results["results"])[
            name
        ].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    versions = {own: results["versions"].get(own) for own in found["tasks"]}
    return {"task": name, "versions": versions, "reported": reported, "rows": rows}


def figures(report: Report) -> dict[str, PerRow]:
    """The metrics of a task that are ratios of sums over its rows: `TASK/METRIC`, or `TASK/METRIC/FILTER`.

    Other metrics that lm-eval reports (corpus-level ones, such as BLEU, or values outside 0 to 1) cannot be resampled by
    rows and have no confidence interval. They are only in results.json.
    """
    found: dict[str, PerRow] = {}
    for key, reported in report["reported"].items():
        metric, _, filtered = key.partition(",")
        made = _per_row(metric, _values(report, metric, filtered), lower=reported["lower"])
        if made is not None and math.isclose(made.value, reported["value"], rel_tol=1e-6, abs_tol=1e-9):
            found[_name(report, key)] = made
    return found


def left_out(report: Report) -> list[str]:
    """A note for each reported metric that `figures` leaves out."""
    known = figures(report)
    return [
        f"lm_eval: {name} is {reported['value']:.4g}; it is not a mean over rows, so it has no confidence interval and is only in results.json"
        for key, reported in report["reported"].items()
        if (name := _name(report, key)) not in known
    ]


def _name(report: Report, key: str) -> str:
    metric, _, filtered = key.partition(",")
    return "/".join(part for part in (report["task"], metric, filtered) if part != "none")


def as_rows(reports: Sequence[Report]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(fields shared by all models, fields of this model) of each row."""
    return [(row["shared"], row["own"]) for report in reports for row in report["rows"]]


def _values(report: Report, metric: str, filtered: str) -> list[Any]:
    own = [row["own"] for row in report["rows"] if row["shared"]["filter"] == filtered]
    return [one[metric] for one in own if metric in one]


def _per_row(metric: str, values: list[Any], *, lower: bool) -> PerRow | None:
    if not values:
        return None
    if metric in ROLLING:
        over, under = ([float(value[at]) for value in values] for at in (0, 1))
        losses = [-one / ROLLING[metric] for one in over]
        if metric != "bits_per_byte":
            return exponential(losses, under)
        return ratio(losses, under, lower_is_better=True, is_share=False)
    if not all(isinstance(value, bool | int | float) and 0 <= value <= 1 for value in values):
        return None
    return replace(mean(values), lower_is_better=lower)


def _row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    first = sample["arguments"][0]
    question = first[0] if isinstance(first, list | tuple) else str(first)
    return {
        "shared": {
            "task": task,
            "filter": sample["filter"],
            "row": int(sample["doc_id"]) + 1,
            "prompt": str(question),
            "reference": sample["target"]
            if isinstance(sample["target"], str | int | list)
            else str(sample["target"]),
        },
        "own": {
            "answers": sample["filtered_resps"],
            **{metric: sample[metric] for metric in sample["metrics"]},
        },
    }


def _load(task: LmEval, name: str) -> Any:
    """The task, or the tasks of the group, with their data. DataError when it is unknown or cannot be loaded."""
    require_lm_eval()
    with _quiet():
        files = _fingerprint(task.include)
        manager = _manager(task.include, files, defaults=False)
        if name not in manager.all_tasks:
            manager = _manager(task.include, files, defaults=True)
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise DataError(
                f"lm_eval: unknown task {name}",
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else "list the tasks with `lm-eval ls tasks`; include adds a folder of your own tasks",
            )
        try:
            return manager.load([name])
        except Exception as error:  # a task definition may run any code, and download its data
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"lm_eval: the task {name} cannot be loaded: {reason[:300]}",
                hint="check its definition, and that this machine can download its data",
            ) from error


@lru_cache(maxsize=4)
def _manager(include: str | None, files: str | None, *, defaults: bool) -> Any:
    """lm-eval's task index. Cached, since indexing its built-in tasks takes seconds. files: hash of the files in `include`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=defaults)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval, which logs many warnings about its own task definitions."""
    import logging

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _fingerprint(include: str | None) -> str | None:
    """A hash of the files in a folder of task definitions."""
    if include is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(
        path for path in Path(include).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(f"{path.relative_to(include)}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
