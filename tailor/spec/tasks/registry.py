"""The registry of evaluation tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from tailor.registry import Registry, check_section
from tailor.spec.tasks.base import EvaluationTask

EVALUATION_TASKS: Registry[type[EvaluationTask]] = Registry(
    "tailor.evaluation_tasks",
    {
        "perplexity": "tailor.spec.tasks.perplexity:Perplexity",
        "forgetting": "tailor.spec.tasks.forgetting:Forgetting",
        "exact_match": "tailor.spec.tasks.answers:ExactMatch",
        "f1": "tailor.spec.tasks.answers:F1",
        "rouge": "tailor.spec.tasks.answers:Rouge",
        "bleu": "tailor.spec.tasks.translation:Bleu",
        "chrf": "tailor.spec.tasks.translation:Chrf",
        "extracted_answer": "tailor.spec.tasks.extracted_answer:ExtractedAnswer",
        "metric": "tailor.spec.tasks.metric:Metric",
        "judge": "tailor.spec.tasks.judge:Judge",
        "multiple_choice": "tailor.spec.tasks.questions:MultipleChoice",
        "facts": "tailor.spec.tasks.questions:Facts",
        "instructions": "tailor.spec.tasks.instructions:Instructions",
        "retrieval": "tailor.spec.tasks.retrieval:Retrieval",
        "reranking": "tailor.spec.tasks.reranking:Reranking",
        "mteb": "tailor.spec.tasks.mteb:Mteb",
        "lm_eval": "tailor.spec.tasks.lm_eval:LmEval",
        "long_perplexity": "tailor.spec.tasks.lengths:LongPerplexity",
        "passkey": "tailor.spec.tasks.lengths:Passkey",
        "needle": "tailor.spec.tasks.lengths:Needle",
        "needle_multi_key": "tailor.spec.tasks.needles:NeedleMultiKey",
        "needle_multi_value": "tailor.spec.tasks.needles:NeedleMultiValue",
        "needle_multi_query": "tailor.spec.tasks.needles:NeedleMultiQuery",
        "variable_tracking": "tailor.spec.tasks.needles:VariableTracking",
    },
)


def task_class(name: str) -> type[EvaluationTask]:
    """The spec class of a registered task. Raises ExtensionError when another package registers something else."""
    found = EVALUATION_TASKS.get(name)
    check_section(EVALUATION_TASKS.group, name, found, EvaluationTask, ("implementation",))
    return found


if TYPE_CHECKING:
    Task = EvaluationTask
else:
    Task = Annotated[
        Union[tuple(task_class(name) for name in EVALUATION_TASKS.names())],  # noqa: UP007 (built at run time)
        Field(discriminator="name"),
    ]
"""One of the registered tasks, chosen by `name`."""
