"""The registry of evaluation tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from tailor.errors import ExtensionError
from tailor.registry import Registry
from tailor.spec.tasks.base import EvaluationTask

EVALUATION_TASKS: Registry[type[EvaluationTask]] = Registry(
    "tailor.evaluation_tasks",
    {
        "perplexity": "tailor.spec.tasks.perplexity:Perplexity",
        "exact_match": "tailor.spec.tasks.answers:ExactMatch",
        "f1": "tailor.spec.tasks.answers:F1",
        "rouge": "tailor.spec.tasks.answers:Rouge",
        "multiple_choice": "tailor.spec.tasks.questions:MultipleChoice",
        "facts": "tailor.spec.tasks.questions:Facts",
        "retrieval": "tailor.spec.tasks.retrieval:Retrieval",
        "lm_eval": "tailor.spec.tasks.lm_eval:LmEval",
        "long_perplexity": "tailor.spec.tasks.lengths:LongPerplexity",
        "passkey": "tailor.spec.tasks.lengths:Passkey",
        "needle": "tailor.spec.tasks.lengths:Needle",
    },
)


def task_class(name: str) -> type[EvaluationTask]:
    """The spec class of a registered task. Raises ExtensionError when another package registers something else."""
    found = EVALUATION_TASKS.get(name)
    if not (isinstance(found, type) and issubclass(found, EvaluationTask)):
        raise ExtensionError(
            f"{EVALUATION_TASKS.group}: {name} is {found!r}, which is not a subclass of EvaluationTask",
            hint="register the task's spec class, a subclass of tailor.spec.tasks.base.EvaluationTask",
        )
    field = found.model_fields.get("name")
    if field is None or get_args(field.annotation) != (name,):
        raise ExtensionError(
            f'{EVALUATION_TASKS.group}: {name} is {found.__module__}.{found.__name__}, whose key `name` does not have the type Literal["{name}"]',
            hint=f'write `name: Literal["{name}"]` in the class, or register it under its own name',
        )
    return found


if TYPE_CHECKING:
    Task = EvaluationTask
else:
    Task = Annotated[
        Union[tuple(task_class(name) for name in EVALUATION_TASKS.names())],  # noqa: UP007 (built at run time)
        Field(discriminator="name"),
    ]
"""One of the registered tasks, chosen by `name`."""
