"""The evaluation task `judge`: pairwise comparison of answers by a language model (Zheng et al. 2023, arXiv 2306.05685).

Each pair is judged in both orders, because judges prefer a position. A verdict that changes with the order is a tie.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from tailor.errors import DataError, TailorError
from tailor.evaluate.chat_endpoint import ChatEndpoint, EndpointError
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.answers import AnswerEvaluator, Measured, means
from tailor.evaluate.tasks.base import Outcome, Replies
from tailor.spec.tasks.judge import Judge

SYSTEM = """\
You compare two answers of AI assistants to the same request. {criteria} Do not let the order of the answers or their \
length influence you. Explain your verdict briefly. Then end with one line that is [[A]] if answer A is better, [[B]] \
if answer B is better, or [[C]] if they are equally good.
"""
USER = """\
[Request, as the assistants read it]
{request}
[End of the request]
{reference}
[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]
"""
REFERENCE = "\n[Reference answer]\n{reference}\n[End of the reference answer]\n"
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
POINTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""Verdict -> points of the answer that is shown first."""
FAILURES = 20
"""After this number of failures without a success, the judge is not asked any more."""


@dataclass(frozen=True)
class Pair:
    """The answers of the evaluated model and of another one to a question, and the points of the first in both orders.

    points: with its answer first, and second; None without a verdict. asked: False for two equal answers, which are a tie.
    """

    row: int
    other: str
    points: tuple[float | None, float | None]
    asked: bool = True

    @property
    def win(self) -> float | None:
        """1 for a win, 0 for a loss, else 1/2. None if a verdict is missing."""
        first, second = self.points
        return None if first is None or second is None else _rounded((first + second) / 2)

    @property
    def agrees(self) -> float | None:
        """Whether both orders have the same verdict. None if one is missing, or the judge was not asked."""
        first, second = self.points
        return None if first is None or second is None or not self.asked else float(first == second)


class JudgeEvaluator(AnswerEvaluator[Judge]):
    def require(self) -> None:
        _ = self._endpoint

    @property
    def _endpoint(self) -> ChatEndpoint:
        spec, key = self.spec, None
        if spec.key_variable is not None and not (key := os.environ.get(spec.key_variable, "").strip()):
            raise TailorError(
                f"{self.key}: the environment variable {spec.key_variable} with the key of the judge is not set",
                hint=f"set {spec.key_variable}, or remove key_variable for a server without keys",
            )
        return ChatEndpoint(spec.base_url, spec.judge_model, spec.timeout, key, spec.temperature)

    def measure(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Measured:
        """Keeps the first sample of each answer; `compare` makes the figures."""
        kept = (list(questions), [samples[0] for samples in answers])
        return Measured({}, [{} for _ in answers], data=kept)

    def compare(self, outcomes: Mapping[str, Outcome], replies: Replies) -> Mapping[str, Outcome]:
        main, *others = outcomes
        questions: list[Question] = outcomes[main].data[0]
        texts = {model: outcome.data[1] for model, outcome in outcomes.items()}
        requests: dict[tuple[int, str], tuple[str, str]] = {}
        for other in others:
            for row, question in enumerate(questions):
                first, second = texts[main][row], texts[other][row]
                if first != second:
                    both = self._request(question, first, second), self._request(question, second, first)
                    requests[row, other] = both
        given, failures = self._replies([one for both in requests.values() for one in both], replies)
        pairs = [
            _pair(row, other, requests.get((row, other)), given)
            for other in others
            for row in range(len(questions))
        ]
        lost = sum(pair.win is None for pair in pairs)
        if lost and lost == sum(pair.asked for pair in pairs):
            reason = failures[0] if failures else "no reply ends with [[A]], [[B]] or [[C]]"
            raise DataError(
                f"{self.key}: the judge {self.spec.judge_model} gave no verdict: {reason}",
                hint="check judge_model, base_url and key_variable, and run the same command again: answers are kept",
            )
        notes = []
        if lost:
            why = f"; the first failure: {failures[0]}" if failures else ""
            notes.append(f"judge: {lost:,} of {len(pairs):,} pairs have no verdict and are left out{why}")
        data = {"pairs": len(pairs), "without_verdict": lost, "failed_requests": len(failures)}
        return {
            model: self._outcome(
                outcome,
                [
                    [pair for pair in pairs if pair.row == row and model in (main, pair.other)]
                    for row in range(len(questions))
                ],
                is_main=model == main,
                data=data,
                notes=notes,
            )
            for model, outcome in outcomes.items()
        }

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """The judge, the number of pairs, and of those without a verdict."""
        found = next(iter(outcomes.values())).data
        return {"judge": {"model": self.spec.judge_model, **found}}

    def _outcome(
        self, outcome: Outcome, pairs: list[list[Pair]], *, is_main: bool, data: Any, notes: list[str]
    ) -> Outcome:
        """The figures of one model. pairs: of each question. The evaluated model gets the mean over the others."""
        scores = [
            [
                {
                    "win_rate": pair.win if is_main or pair.win is None else 1 - pair.win,
                    "judge_agreement": pair.agrees,
                }
                for pair in own
            ]
            for own in pairs
        ]
        measured = means(scores)
        rows = [
            (shared, {**own, **score})
            for (shared, own), score in zip(outcome.rows, measured.rows, strict=True)
        ]
        return replace(outcome, figures=measured.figures, rows=rows, data=data, notes=notes)

    def _request(self, question: Question, a: str, b: str) -> str:
        reference = REFERENCE.format(reference=question.reference) if self.spec.reference else ""
        return self._endpoint.request(
            [
                {"role": "system", "content": SYSTEM.format(criteria=self.spec.criteria)},
                {
                    "role": "user",
                    "content": USER.format(request=question.rendered, reference=reference, a=a, b=b),
                },
            ]
        )

    def _replies(self, requests: Sequence[str], replies: Replies) -> tuple[dict[str, str | None], list[str]]:
        """(reply or None for each request, the reasons of failed requests). Replies are kept as they arrive."""
        endpoint, failures, answered = self._endpoint, [], 0
        found = {request: replies.reply(self._kept_as(request)) for request in requests}
        missing = [request for request, reply in found.items() if reply is None]
        pool = ThreadPoolExecutor(self.spec.parallel)
        try:
            pending = {pool.submit(endpoint.ask, request): request for request in missing}
            for future in as_completed(pending):
                try:
                    reply = future.result()
                except EndpointError as error:
                    failures.append(str(error))
                    if not answered and len(failures) >= FAILURES:
                        break
                    continue
                answered += 1
                found[pending[future]] = reply
                replies.keep(self._kept_as(pending[future]), reply)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return found, failures

    def _kept_as(self, request: str) -> str:
        """What identifies a request: two servers may use the same name for a model."""
        return f"{self.spec.base_url}\n{request}"


def _pair(row: int, other: str, requests: tuple[str, str] | None, given: Mapping[str, str | None]) -> Pair:
    """The result of a pair. requests: with the first model's answer first, and second; None for two equal answers."""
    if requests is None:
        return Pair(row, other, (0.5, 0.5), asked=False)
    first, second = (verdict(given[request]) for request in requests)
    return Pair(row, other, (POINTS[first] if first else None, 1 - POINTS[second] if second else None))


def verdict(reply: str | None) -> str | None:
    """A, B or C, the last one in double brackets. None if a reply has none."""
    found = _VERDICT.findall(reply or "")
    return found[-1] if found else None


def _rounded(points: float) -> float:
    """A win in one order and a tie in the other is a tie: the orders disagree."""
    return points if points in (0.0, 1.0) else 0.5
