"""Runs tasks of MTEB with the embeddings of a model, through MTEB's interface for encoders."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tailor.errors import DataError, TailorError
from tailor.evaluate.figures import PerRow, mean
from tailor.spec.tasks.mteb import Mteb

AT_ONCE = 4096
"""Texts that are encoded at once: the tokens of a whole corpus may not fit into memory."""
Report = dict[str, Any]
"""The results of one MTEB task: `task`, `metric` (its main one), and `scores`, one entry per split and subset."""
Embed = Callable[[list[str], str | None], np.ndarray]
"""(texts without blank ones, instruction) -> embeddings, float32[n, E]."""


def require_mteb() -> Any:
    """The package mteb. TailorError when it is not installed."""
    try:
        import mteb
    except ImportError:
        raise TailorError(
            "the task mteb needs the package mteb, which is not installed",
            hint="pip install 'tailor[mteb]', or remove the task mteb",
        ) from None
    return mteb


def load_tasks(task: Mteb) -> list[Any]:
    """The tasks of MTEB, without their data. DataError for an unknown name, and for a task that is not of texts alone."""
    mteb = require_mteb()
    return [_task(mteb, name) for name in task.tasks]


def settings(task: Mteb) -> list[dict[str, Any]]:
    """The settings of each task."""
    shared = task.model_dump(mode="json", exclude={"tasks", "name", "instructions"})
    version = require_mteb().__version__
    return [
        {
            **shared,
            "task": name,
            "query_instruction": task.instructions.get(name, task.query_instruction),
            "version": version,
        }
        for name in task.tasks
    ]


def run(embed: Embed, settings_of_task: Mapping[str, Any], label: str) -> Report:
    """Run one task. settings_of_task: one of `settings`; label: of the model. DataError when it fails."""
    mteb = require_mteb()
    name = settings_of_task["task"]
    task = _task(mteb, name)
    instructions = (settings_of_task["query_instruction"], settings_of_task["corpus_instruction"])
    encoder = Encoder(embed, *instructions, label)
    try:
        (result,) = mteb.evaluate(
            encoder,
            [task],
            cache=None,
            overwrite_strategy="always",
            show_progress_bar=False,
            co2_tracker=False,
        ).task_results
    except TailorError:
        raise
    except Exception as error:  # data that cannot be downloaded, or any error in a task's own code
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"mteb: the task {name} failed: {reason[:300]}",
            hint="check that this machine can download its data",
        ) from error
    scores = [
        {"split": split, **{key: one[key] for key in ("hf_subset", "main_score")}, "all": _numbers(one)}
        for split, subsets in result.scores.items()
        for one in subsets
    ]
    if not all(math.isfinite(one["main_score"]) for one in scores):
        raise DataError(f"mteb: the task {name} has no score: its main metric is NaN", hint="remove the task")
    return {"task": name, "metric": str(task.metadata.main_score), "scores": scores}


def figures(report: Report) -> dict[str, PerRow]:
    """`TASK/METRIC`: the mean over splits and subsets. A task of one subset has an interval without width."""
    values = [float(one["main_score"]) for one in report["scores"]]
    return {f"{report['task']}/{report['metric']}": mean(values)}


class Encoder:
    """A model as MTEB calls it (`EncoderProtocol`)."""

    def __init__(
        self, embed: Embed, query_instruction: str | None, corpus_instruction: str | None, label: str
    ) -> None:
        self._embed = embed
        self._query, self._corpus = query_instruction, corpus_instruction
        meta = require_mteb().models.ModelMeta
        self.mteb_model_meta = meta.create_empty({"name": f"tailor/{label}", "revision": "local"})

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Embeddings of all texts, float32[n, E]. A blank text has zeros.

        inputs: batches of MTEB, with the key `text`. prompt_type: `query`, `document`, or None in a task without queries.
        """
        texts = [str(text) for batch in inputs for text in batch["text"]]
        kept = [at for at, text in enumerate(texts) if text.strip()]
        instruction = (
            self._corpus if getattr(prompt_type, "value", prompt_type) == "document" else self._query
        )
        vectors: np.ndarray | None = None
        for start in range(0, len(kept), AT_ONCE):
            part = kept[start : start + AT_ONCE]
            found = self._embed([texts[at] for at in part], instruction)
            if vectors is None:
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            vectors[part] = found
        if vectors is None:
            raise DataError("mteb: all texts of a task are empty", hint="remove the task")
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarities, float32[n, m]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarities of the pairs, float32[n]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(vectors: Any) -> Any:
    import torch

    found = torch.atleast_2d(torch.as_tensor(np.asarray(vectors, np.float32)))
    return torch.nn.functional.normalize(found, dim=-1)


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are finite: MTEB has NaN where a score is not defined, such as an AUC without both classes."""
    numbers = {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _task(mteb: Any, name: str) -> Any:
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        known = [one.metadata.name for one in mteb.get_tasks()]
        near = difflib.get_close_matches(name, known, n=3)
        raise DataError(
            f"mteb: unknown task {name}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "list the tasks with `mteb available-tasks`",
        ) from error
    if set(task.metadata.modalities) != {"text"}:
        raise DataError(f"mteb: {name} is not a task of texts alone", hint="remove it")
    return task
