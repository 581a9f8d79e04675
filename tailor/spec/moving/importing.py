"""A file of another trainer as a recipe, with an answer to every argument."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, get_origin

from tailor.errors import Problem, RecipeError
from tailor.layout import RECIPE
from tailor.spec.load import judge
from tailor.spec.moving.combine import combine
from tailor.spec.moving.conversions import CONVERSIONS
from tailor.spec.moving.draft import Answer, Argument, Draft, as_list, boolean, number
from tailor.spec.moving.reading import flattened, read_file, shown
from tailor.spec.moving.writing import write
from tailor.spec.reading import schema_tree
from tailor.spec.reading.source import Document, Position
from tailor.spec.recipe import Recipe
from tailor.spec.trainers.registry import IMPORTED
from tailor.spec.trainers.rows import OFF, Row, Trainer, Verdict

_SECTIONS = {"unsloth": ("data", "training", "lora", "logging")}
"""Sections of a trainer's file whose names have no meaning of their own."""


@dataclass(frozen=True)
class Imported:
    """The recipe that was made of a file."""

    trainer: Trainer
    recipe: str
    """YAML with a comment for every argument."""
    answers: list[Answer]
    problems: list[Problem]
    """What is left to do until the recipe validates."""


def import_file(file: str, trainer: str | None = None, name: str | None = None) -> Imported:
    """Read a file of another trainer. trainer: its name, if its keys are not clear. name: of the recipe in messages.

    Raises RecipeError if the file cannot be read, or asks for what no recipe can say.
    """
    arguments = read_file(file)
    file = shown(file)
    found = IMPORTED[trainer] if trainer else recognize(arguments, file)
    return convert(arguments, found, file, name or RECIPE)


def recognize(arguments: dict[str, Argument], file: str) -> Trainer:
    """The trainer whose table fits. Raises RecipeError if none does."""
    if "zero_optimization" in arguments:
        raise _problem(file, "is a DeepSpeed JSON; import the file of the training arguments that names it")
    if "train_args_file" in arguments:
        name = arguments["train_args_file"].value
        raise _problem(file, f"reads its arguments from {name}; import that file")
    scores: dict[str, float] = {}
    for trainer in IMPORTED.values():
        names = set(flattened(arguments, trainer.rows, _SECTIONS.get(trainer.name, ())))
        marks = sum(weight for mark, weight in trainer.marks.items() if mark in names or mark in arguments)
        if trainer.name == "torchtune" and not any("_component_" in name for name in names):
            marks = 0
        if any(section in arguments for section in _SECTIONS.get(trainer.name, ())) and isinstance(
            arguments.get("training", Argument("", 0)).value, dict
        ):
            marks += 6
        known = sum(name in trainer.rows for name in names) / max(1, len(names))
        scores[trainer.name] = marks * known
    best, *others = sorted(scores, key=lambda name: -scores[name])
    if scores[best] < 2:
        kinds = ", ".join(IMPORTED)
        raise _problem(file, f"is not recognized; name its trainer with --from: {kinds}")
    if scores[others[0]] == scores[best] > 0:
        raise _problem(file, f"could be of {best} or {others[0]}; name its trainer with --from")
    return IMPORTED[best]


def convert(arguments: dict[str, Argument], trainer: Trainer, file: str, name: str) -> Imported:
    """Arguments as a recipe."""
    flat = flattened(arguments, trainer.rows, _SECTIONS.get(trainer.name, ()))
    draft = Draft(trainer, flat, os.path.dirname(file) or ".")
    refusals: list[Problem] = []
    for argument in flat.values():
        answer = Answer(argument, "unknown")
        draft.answers[argument.name] = answer
        row = row_of(trainer, argument.name)
        if row is None and argument.name.startswith("no_") and argument.value is True:  # a flag of argparse
            row, argument = (
                row_of(trainer, argument.name.removeprefix("no_")),
                Argument(argument.name, False, argument.line),
            )
        if row is None:
            answer.text = _suggestion(argument.name, trainer)
            continue
        _apply(draft, row, argument, answer)
        if answer.outcome == "refused":
            refusals.append(
                Problem(file, argument.line, 1 if argument.line else 0, argument.shown, answer.text)
            )
    if refusals:
        raise RecipeError(refusals)
    _defaults(draft)
    _unclear_values(draft)
    combine(draft)
    for answer in draft.answers.values():
        if answer.outcome == "taken" and not answer.keys:
            answer.outcome, answer.text = "unneeded", answer.text or "it follows from the other arguments"
    _leave_open(draft)
    problems = _settle(draft, name)
    return Imported(trainer, write(draft, file), list(draft.answers.values()), problems)


def row_of(trainer: Trainer, name: str) -> Row | None:
    """The row of an argument, or of the section that it is in."""
    for known in (name, name.replace("-", "_"), name.split(".")[0] if "." in name else name):
        if known in trainer.rows:
            return trainer.rows[known]
    return None


def _apply(draft: Draft, row: Row, argument: Argument, answer: Answer) -> None:
    """Answer one argument by its row."""
    answer.outcome, answer.text = row.outcome, row.text
    if row.outcome in ("unsupported", "refused"):
        if _among(argument.value, row.neutral):
            answer.outcome, answer.text = "unneeded", "off"
        return
    if row.outcome == "unneeded":
        return
    answer.text = ""
    if argument.is_secret:
        answer.outcome, answer.text = "unsupported", "it has a secret; put secrets into the environment"
        return
    if argument.value is None or argument.value == "":
        answer.outcome, answer.text = "unneeded", "empty"
        return
    found: Any = _looked_up(row, argument.value)
    if found is None and row.convert:
        found = CONVERSIONS[row.convert](draft, argument)
        if isinstance(found, str):
            answer.text, found = found, None
    elif found is None:
        found = _plain(draft, row, argument)
    elif not isinstance(found, Verdict):
        value = found[0]
        for key, inner in value.items() if _is_keys(value) else ((row.keys[0], value),):
            draft.put(key, inner, argument)
        found = None
    if isinstance(found, Verdict):
        answer.outcome, answer.text = found.outcome, found.text
        if found.value is not None:
            draft.put(row.keys[0], found.value, argument)


def _looked_up(row: Row, value: Any) -> Verdict | tuple[Any] | None:
    """The value of a row's list of pairs, in a tuple. None if it has no such list."""
    if not row.values:
        return None
    text = str(value).strip().lower()
    if text not in row.values and isinstance(value, bool):
        text = str(value).lower()
    if boolean(value) is not None and text not in row.values:
        text = str(boolean(value)).lower()
    if text not in row.values and "*" not in row.values:
        if row.convert or isinstance(value, (dict, list)) or not _has_choices(row):
            return None
        return Verdict("unsupported", f"no such value; {row.keys[0]} keeps its default")
    found = row.values.get(text, row.values.get("*"))
    return found if isinstance(found, Verdict) else (found,)


def _has_choices(row: Row) -> bool:
    allowed = _allowed(row.keys[0])
    return (
        allowed is not None and bool(allowed.choices or bool in allowed.types) and float not in allowed.types
    )


def _is_keys(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all("." in str(key) or str(key).startswith("=") for key in value)
    )


def _plain(draft: Draft, row: Row, argument: Argument) -> Verdict | None:
    """Set the key of a row to the value, in the key's type."""
    (key, *_) = row.keys
    if key.startswith("="):
        draft.put(key, argument.value, argument)
        return None
    value = argument.value
    allowed = _allowed(key)
    if allowed is None:
        draft.put(key, value, argument)
        return None
    if (
        (
            allowed.choices
            and str not in allowed.types
            and not any(kind in (int, float) or get_origin(kind) is list for kind in allowed.types)
        )
        and bool not in allowed.types
        and value not in allowed.choices
    ):
        return Verdict("unsupported", f"no such value; {key} keeps its default")
    if (
        bool in allowed.types
        and boolean(value) is not None
        and not (int in allowed.types and isinstance(value, int) and value > 1)
    ):
        value = boolean(value)
    elif allowed.lists:
        item = allowed.item(0)
        numeric = item is not None and any(kind in (int, float) for kind in item.types)
        value = value if isinstance(value, list) else as_list(value)
        value = [number(one) if numeric else str(one) for one in value]
        if not value:
            return Verdict("unneeded", "empty")
    elif any(kind in (int, float) for kind in allowed.types) and number(value) is not None:
        value = number(value)
        if float not in allowed.types and isinstance(value, float) and value.is_integer():
            value = int(value)
    elif str in allowed.types and not isinstance(value, (dict, list)):
        value = str(value)
    draft.put(key, value, argument)
    return None


@cache
def _allowed(key: str) -> schema_tree.Allowed | None:
    """What a key's value may be, or None for keys of lists and of tables that a recipe's sections do not name."""
    sections: list[Any] = [Recipe]
    found: schema_tree.Allowed | None = None
    for step in key.split("."):
        inner = [info for section in sections if (info := schema_tree.field(section, step)) is not None]
        if not inner:
            return None
        found = schema_tree.of_field(inner[0])
        sections = [section for info in inner for section in schema_tree.of_field(info).sections]
    return found


def _among(value: Any, neutral: tuple[Any, ...]) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    return any(text == one and isinstance(text, bool) == isinstance(one, bool) for one in neutral) or (
        isinstance(text, str) and text in ("false", "0")
    )


def _defaults(draft: Draft) -> None:
    """The trainer's own defaults for what the file leaves out."""
    given = {name for name, argument in draft.arguments.items() if argument.value is not None}
    defaults = dict(draft.trainer.defaults)
    if all(argument.line < 1 for argument in draft.arguments.values()):
        defaults |= draft.trainer.command_defaults
    for name, value in defaults.items():
        row = draft.trainer.rows.get(name)
        if row is None or name in given:
            continue
        keys = {key.removeprefix("=") for key in row.keys}
        if keys == {"warmup_ratio"}:
            keys.add("warmup")
        if keys & (draft.values.keys() | draft.facts.keys()):
            continue
        source = Argument(f"default of {draft.trainer.title}: {name}", value, -1)
        if value is None:
            draft.put(row.keys[0], None, source)
            continue
        stand_in = Argument(name, value, -1)
        answer = Answer(stand_in, "taken")
        _apply(draft, row, stand_in, answer)
        for key, origins in draft.origins.items():
            draft.origins[key] = [source if one is stand_in else one for one in origins]


_NUMBERS = (
    "max_steps",
    "warmup",
    "warmup_ratio",
    "eval_steps",
    "save_steps",
    "min_ratio",
    "embedding_rate",
    "evaluate_per_epoch",
    "rope_theta",
)
_SWITCHES = ("bits4", "bits8", "double", "bf16", "fp16")


def _unclear_values(draft: Draft) -> None:
    """Name the arguments that are neither a number nor off, or neither on nor off, such as a variable of a shell."""
    for fact in (*_NUMBERS, *_SWITCHES):
        value = draft.facts.get(fact)
        known = number(value) if fact in _NUMBERS else boolean(value)
        if known is None and not _among(value, OFF) and str(value).lower() not in ("auto", "full"):
            kind = "a number" if fact in _NUMBERS else "true or false"
            draft.answer(fact, "unsupported", f"it is not {kind}: write the key of the recipe yourself")


def _leave_open(draft: Draft) -> None:
    """Keys that a recipe needs and the file does not have."""
    for key, value, why in (
        ("model.path", "path/to/model", "the base model"),
        ("data.train", [{"path": "path/to/rows.jsonl"}], "the training rows"),
        ("optim.learning_rate", 2e-4, "the file has none"),
        ("save.to", "runs/imported", "the folder of the run"),
    ):
        if not draft.values.get(key):
            draft.values[key] = value
            draft.remarks[key] = f"fill in: {why}"


def _settle(draft: Draft, name: str) -> list[Problem]:
    """Drop keys that have no effect together with the others or conflict with them, and return the problems left."""
    problems: list[Problem] = []
    for _ in range(8):
        problems = problems_of(draft, name)
        if not any(_dropped(draft, problem) for problem in problems):
            break
    return problems


_YIELDING = (
    ("train.precision", "scale.strategy"),
    ("optim.optimizer", "scale.strategy"),
    ("optim.schedule", "optim.optimizer"),
    ("train.compile", ""),
    ("model.kernels", ""),
    ("scale.strategy", ""),
    ("train.activation_offloading", ""),
)
"""Which key is dropped if it conflicts with another one (any, if empty). Most change only speed and memory."""


def _dropped(draft: Draft, problem: Problem) -> bool:
    """Whether a key was dropped to solve a problem."""
    unused, _, why = problem.message.partition("has no effect")
    if not unused and why:
        draft.drop(problem.key, f"it has no effect{why}")
        return True
    if not problem.message.startswith("conflicts with "):
        return False
    other, _, why = problem.message.removeprefix("conflicts with ").partition(": ")
    for key, against in _YIELDING:
        if key == "optim.optimizer" and "adamw" not in str(draft.values.get(key)):
            continue  # another optimizer is another training; other variants of AdamW only need less memory
        keys = [(problem.key, other), (other, problem.key)]
        if key in draft.values and any(one.startswith(key) and two.startswith(against) for one, two in keys):
            cause = other if problem.key == key else problem.key
            draft.drop(key, f"{cause}: {why}" if why else cause, "unsupported")
            return True
    return False


def problems_of(draft: Draft, name: str) -> list[Problem]:
    """What `tailor validate` says about the recipe."""
    document = Document(name, draft.tree(), positions={(): Position(name)})
    try:
        judge(document, Recipe)
    except RecipeError as error:
        return [Problem(name, 0, 0, problem.key, problem.message) for problem in error.problems]
    return []


def _suggestion(name: str, trainer: Trainer) -> str:
    near = difflib.get_close_matches(name, trainer.rows, n=1, cutoff=0.85)
    return (
        f"not an argument of {trainer.title} that is known here{f'; did you mean {near[0]}?' if near else ''}"
    )


def _problem(file: str, message: str) -> RecipeError:
    return RecipeError([Problem(file, 0, 0, "", message)])
