"""Base class of tasks that compare generated answers with reference answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.layout import ANSWERS
from tailor.spec.tasks.base import EvaluationTask

S = TypeVar("S", bound=EvaluationTask)


class AnswerEvaluator(TaskEvaluator[S]):
    """Scores each answer against its reference. A subclass implements `score`.

    All tasks on the evaluation rows share the generated answers. A task with its own rows overrides `part`, `file` and
    `inputs`.
    """

    part: ClassVar[str] = "questions"
    file: ClassVar[str] = ANSWERS

    @abstractmethod
    def score(self, answer: str, reference: str) -> dict[str, float]:
        """Figure name -> score of this row, from 0 to 1. The evaluation reports the mean over rows."""

    def inputs(self, rows: ModelRows) -> TaskInputs:
        return rows.questions

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        answers = collected.answers(self.part, len(inputs.rows), inputs.tokenizer)
        scores = [
            self.score(answer, str(question.reference))
            for answer, question in zip(answers, inputs.rows, strict=True)
        ]
        rows = [
            (
                {
                    **one.location,
                    "prompt": one.question,
                    "rendered": one.rendered,
                    "reference": one.reference,
                },
                {"answer": answer, **score},
            )
            for one, answer, score in zip(inputs.rows, answers, scores, strict=True)
        ]
        return Outcome({name: mean([score[name] for score in scores]) for name in scores[0]}, self.file, rows)
