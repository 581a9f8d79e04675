"""From the batches' results to figures, and to what is kept of each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailor.evaluate import harness
from tailor.evaluate.figures import PerRow, from_losses, mean
from tailor.evaluate.grid import finds
from tailor.evaluate.inputs import Material
from tailor.evaluate.jobs import Embedded, Job, Result
from tailor.evaluate.retrieval.collection import Collection
from tailor.evaluate.retrieval.search import Found, Search
from tailor.evaluate.scores import facts_found, scorer
from tailor.evaluate.windows import BUCKETS
from tailor.layout import ANSWERS, FACTS, RETRIEVAL
from tailor.spec.suite import Retrieval, Suite

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """figures: model -> figure -> what it is made of. rows: file -> one entry per row, with each model's part.

    grids: task -> its lengths and depths, and per model the shares found, [length][depth]. positions: ends of the parts
    of the longest window, and per model the mean loss in each (None where no token was scored); empty without texts.
    """

    figures: dict[str, dict[str, PerRow]]
    rows: dict[str, list[Row]]
    truncated: dict[str, int]
    """Texts that a model embedded without their ends, by model."""
    harness: dict[str, Any]
    """What lm-eval itself reports, by task and model, with its tasks' versions; empty without such a task."""
    left_out: list[str]
    """Figures of lm-eval that are no figures here, in words."""
    grids: dict[str, Any]
    positions: dict[str, Any]


def results(
    suite: Suite, material: Mapping[str, Material], jobs: Sequence[Job], done: Iterable[Result]
) -> Results:
    """Judge what the jobs gave. Embeddings are taken one job at a time, for all of them may be more than fit."""
    given: dict[tuple[str, str], dict[int, Any]] = {}
    searched = next((task for task in suite.tasks if isinstance(task, Retrieval)), None)
    searches = {
        model: Search(own.collection, ignore_identical_ids=searched.data.ignore_identical_ids)
        for model, own in material.items()
        if searched is not None and own.collection is not None
    }
    truncated = dict.fromkeys(searches, 0)
    for job, result in zip(jobs, done, strict=True):
        if isinstance(result, Embedded):
            search = searches[job.model]
            (search.add_queries if job.part == "queries" else search.add_passages)(job.items, result.vectors)
            truncated[job.model] += result.truncated
        else:
            given.setdefault((job.model, job.part), {}).update(zip(job.items, result, strict=True))
    figures: dict[str, dict[str, PerRow]] = {}
    rows: dict[str, list[Row]] = {}
    told: dict[str, Any] = {}
    grids: dict[str, Any] = {}
    positions: dict[str, Any] = {}
    for model, own in material.items():
        found_passages = searches[model].found() if model in searches else []
        answered = {part: given.get((model, part), {}) for part in (*PARTS, *own.hunts)}
        judged = _Judged(own, answered, found_passages)
        found: dict[str, PerRow] = {}
        for task in suite.tasks:
            found.update(judged.of(task))
        figures[model] = found
        for file, entries in judged.rows().items():
            kept = rows.setdefault(file, [{**shared} for shared, _ in entries])
            for row, (_, mine) in zip(kept, entries, strict=True):
                row.setdefault("models", {})[model] = mine
        for report in judged.reports:
            values = {key: one["value"] for key, one in report["reported"].items()}
            task = told.setdefault(report["task"], {"versions": report["versions"], "reported": {}})
            task["reported"][model] = values
        for grid_task in own.hunts:
            entry = grids.setdefault(grid_task, judged.axes(grid_task))
            entry.setdefault("models", {})[model] = judged.grid(grid_task)
        if own.texts:
            longest = own.texts[0].windows[-1].length
            positions.setdefault("ends", [longest * (at + 1) // BUCKETS for at in range(BUCKETS)])
            positions.setdefault("models", {})[model] = judged.by_position()
    left_out = [line for report in judged.reports for line in harness.left_out(report)]
    return Results(figures, rows, truncated, told, left_out, grids, positions)


PARTS = ("passages", "questions", "choices", "facts", "texts", harness.PART)
SHOWN_PASSAGES, SHOWN_LETTERS = 10, 200
"""What is kept of a query's best passages: how many, and how much of each text."""


class _Judged:
    """One model's rows with what it made of them."""

    def __init__(
        self, material: Material, given: Mapping[str, Mapping[int, Any]], found: Sequence[Found]
    ) -> None:
        self._material = material
        self._found = found
        decode = material.tokenizer.decode
        self._answers = {
            part: [
                decode(given[part].get(at, []), skip_special_tokens=True).strip() for at in range(len(asked))
            ]
            for part, asked in (
                ("questions", material.questions),
                ("facts", material.facts),
                *material.hunts.items(),
            )
        }
        self.reports = list(given[harness.PART].values())
        """Of lm-eval's tasks."""
        self._texts = _grouped(given["texts"], [len(one.windows) for one in material.texts])
        self._losses = _grouped(given["passages"], [len(one.sequences) for one in material.passages])
        self._choices = _grouped(given["choices"], [len(one.sequences) for one in material.choices])
        self._scores: dict[str, list[dict[str, Any]]] = {
            "questions": [{} for _ in material.questions],
            "facts": [{} for _ in material.facts],
            "choices": [{} for _ in material.choices],
        }

    def of(self, task: Any) -> dict[str, PerRow]:
        """The figures of a task."""
        if task.name == "lm_eval":
            return {name: made for report in self.reports for name, made in harness.figures(report).items()}
        if task.name == "perplexity":
            sums = [{key: sum(one[key] for one in row) for key in _KEYS} for row in self._losses]
            return from_losses(*([row[key] for row in sums] for key in _KEYS))
        if task.name == "long_perplexity":
            return self._long_perplexity(task.lengths)
        if task.name in self._material.hunts:
            return self._hunt(task.name)
        if task.name == "retrieval":
            return {name: mean([one.figures[name] for one in self._found]) for name in self._found[0].figures}
        judge = {"multiple_choice": self._judge_choices, "facts": self._judge_facts}.get(task.name)
        part = {"multiple_choice": "choices", "facts": "facts"}.get(task.name, "questions")
        scores = judge() if judge is not None else self._judge_answers(task)
        for kept, score in zip(self._scores[part], scores, strict=True):
            kept.update(score)
        return {name: mean([score[name] for score in scores]) for name in scores[0]}

    def _judge_answers(self, task: Any) -> list[dict[str, float]]:
        score = scorer(task)
        pairs = zip(self._answers["questions"], self._material.questions, strict=True)
        return [score(answer, str(question.reference)) for answer, question in pairs]

    def _judge_facts(self) -> list[dict[str, float]]:
        scores = []
        for answer, question in zip(self._answers["facts"], self._material.facts, strict=True):
            found = facts_found(answer, question.facts)
            scores.append({"facts": sum(found) / len(found)})
        return scores

    def _judge_choices(self) -> list[dict[str, float]]:
        scores = []
        for row, choice in zip(self._choices, self._material.choices, strict=True):
            plain = [-one["loss"] for one in row]
            by_length = [value / len(text) for value, text in zip(plain, choice.choices, strict=True)]
            scores.append(
                {
                    "accuracy": float(plain.index(max(plain)) == choice.answer),
                    "accuracy_norm": float(by_length.index(max(by_length)) == choice.answer),
                }
            )
        return scores

    def _long_perplexity(self, lengths: Sequence[int]) -> dict[str, PerRow]:
        found = {}
        for at, length in enumerate(sorted(lengths)):
            loss, tokens = (
                np.array([sum(text[at][key]) for text in self._texts], np.float64)
                for key in ("loss", "tokens")
            )
            found[f"perplexity_{length}"] = PerRow(loss, tokens, exponential=True, lower_is_better=True)
        return found

    def by_position(self) -> list[float | None]:
        """Mean loss in each part of the longest window."""
        loss, tokens = (np.sum([text[-1][key] for text in self._texts], axis=0) for key in ("loss", "tokens"))
        return [
            one / count if count else None for one, count in zip(loss.tolist(), tokens.tolist(), strict=True)
        ]

    def _shares_found(self, task: str) -> list[float]:
        pairs = zip(self._answers[task], self._material.hunts[task], strict=True)
        return [float(finds(answer, hunt.value)) for answer, hunt in pairs]

    def _hunt(self, task: str) -> dict[str, PerRow]:
        scores, hunts = self._shares_found(task), self._material.hunts[task]
        found = {task: mean(scores)}
        for length in self.axes(task)["lengths"]:
            own = [score for score, hunt in zip(scores, hunts, strict=True) if hunt.place["length"] == length]
            found[f"{task}_{length}"] = mean(own)
        return found

    def axes(self, task: str) -> dict[str, Any]:
        """The lengths and depths of a grid."""
        places = [hunt.place for hunt in self._material.hunts[task]]
        return {f"{key}s": sorted({place[key] for place in places}) for key in ("length", "depth")}

    def grid(self, task: str) -> list[list[float]]:
        """Share of the values that were found, [length][depth]."""
        cells: dict[tuple[int, float], list[float]] = {}
        for score, hunt in zip(self._shares_found(task), self._material.hunts[task], strict=True):
            cells.setdefault((hunt.place["length"], hunt.place["depth"]), []).append(score)
        axes = self.axes(task)
        return [
            [sum(own) / len(own) for depth in axes["depths"] for own in [cells[length, depth]]]
            for length in axes["lengths"]
        ]

    def rows(self) -> dict[str, list[tuple[Row, Row]]]:
        """File -> per row, what all models share of it and what is this one's."""
        material, found = self._material, {}
        if self.reports:
            found["lm_eval.jsonl"] = harness.as_rows(self.reports)
        if material.passages:
            found["passages.jsonl"] = [
                ({**one.place}, {key: sum(part[key] for part in row) for key in _KEYS})
                for one, row in zip(material.passages, self._losses, strict=True)
            ]
        if material.choices:
            found["choices.jsonl"] = [
                (
                    {**one.place, "question": one.question, "choices": one.choices, "right": one.answer},
                    {"loglikelihoods": [-part["loss"] for part in row], **score},
                )
                for one, row, score in zip(
                    material.choices, self._choices, self._scores["choices"], strict=True
                )
            ]
        if material.questions:
            found[ANSWERS] = [
                (
                    {
                        **one.place,
                        "prompt": one.question,
                        "rendered": one.rendered,
                        "reference": one.reference,
                    },
                    {"answer": answer, **score},
                )
                for one, answer, score in zip(
                    material.questions,
                    self._answers["questions"],
                    self._scores["questions"],
                    strict=True,
                )
            ]
        for task, hunts in material.hunts.items():
            found[f"{task}.jsonl"] = [
                ({**one.place, "value": one.value, "start": one.start}, {"answer": answer, "found": score})
                for one, answer, score in zip(
                    hunts, self._answers[task], self._shares_found(task), strict=True
                )
            ]
        if material.texts:
            found["texts.jsonl"] = [
                (
                    {**one.place},
                    {
                        str(window.length): {key: sum(own[key]) for key in ("loss", "tokens")}
                        for window, own in zip(one.windows, read, strict=True)
                    },
                )
                for one, read in zip(material.texts, self._texts, strict=True)
            ]
        if material.facts:
            found[FACTS] = [
                (
                    {
                        **one.place,
                        "prompt": one.question,
                        "rendered": one.rendered,
                        "facts": [list(ways) for ways in one.facts],
                    },
                    {"answer": answer, "found": facts_found(answer, one.facts), **score},
                )
                for one, answer, score in zip(
                    material.facts, self._answers["facts"], self._scores["facts"], strict=True
                )
            ]
        if material.collection is not None:
            found[RETRIEVAL] = list(_searched(material.collection, self._found))
        return found


def _searched(collection: Collection, found: Sequence[Found]) -> Iterator[tuple[Row, Row]]:
    """Per query what was judged, and what was found: the best passages with their scores and grades."""
    for query, grades, own in zip(collection.queries, collection.grades, found, strict=True):
        passages = [
            {
                "id": collection.corpus[at].id,
                "score": score,
                "grade": grades.get(at, 0),
                "text": _short(collection.corpus[at].text),
            }
            for at, score in zip(own.passages[:SHOWN_PASSAGES], own.scores, strict=False)
        ]
        shared: Row = {"id": query.id, "query": query.text}
        if query.instruction:
            shared["instruction"] = query.instruction
        shared["relevant"] = {collection.corpus[at].id: grade for at, grade in grades.items() if grade > 0}
        yield shared, {"found": passages, **own.figures}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"


_KEYS = ("loss", "hits", "tokens")


def _grouped(values: Mapping[int, Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Per row the values of its sequences, which are numbered through."""
    groups, at = [], 0
    for size in sizes:
        groups.append([values[number] for number in range(at, at + size)])
        at += size
    return groups
