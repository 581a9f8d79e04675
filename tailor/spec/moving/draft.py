"""The recipe that is being made: values by key, where each one comes from, and an answer to every argument."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tailor.printable import printable
from tailor.redaction import is_secret, is_secret_key, redacted
from tailor.spec.reading.source import scalar
from tailor.spec.trainers.rows import Outcome, Trainer

EACH = "each "
"""Start of the facts that are a key of every source of `data.train`."""
_MAX_SHOWN = 60
_MAX_NUMBER = 10**18


@dataclass
class Argument:
    """One argument of the file. line: from 1, 0 if unknown."""

    name: str
    value: Any
    line: int = 0

    @property
    def shown(self) -> str:
        """`name: value` for a comment: one line, shortened, without secrets."""
        name = one_line(self.name)
        if is_secret_key(self.name.split(".")[-1]) or self.is_secret:
            return f"{name}: (not shown)"
        text = (
            self.value
            if isinstance(self.value, str)
            else json.dumps(self.value, ensure_ascii=False, default=str)
        )
        text = one_line(text)
        return f"{name}: {text if len(text) <= _MAX_SHOWN else f'{text[: _MAX_SHOWN - 3]}...'}"

    @property
    def is_secret(self) -> bool:
        """Whether its value has a secret, which no recipe may have."""
        return is_secret(json.dumps(self.value, ensure_ascii=False, default=str))


def one_line(text: str) -> str:
    """Text of the file for a comment: it cannot end the comment, and has no control characters."""
    return printable(redacted(" ".join(text.split())))


@dataclass
class Answer:
    """What becomes of an argument."""

    argument: Argument
    outcome: Outcome | str
    """An outcome of a row, or `unknown`."""
    keys: list[str] = field(default_factory=list)
    text: str = ""


@dataclass
class Draft:
    """A recipe in the making. Keys are dotted: `model.adapter.rank`. Facts have no key of their own yet."""

    trainer: Trainer
    arguments: dict[str, Argument]
    folder: str = "."
    """The folder of the file, in which its neighbors are looked up."""
    values: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, list[Argument]] = field(default_factory=dict)
    """Key or fact -> the arguments that it comes from."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Key -> a remark for its comment."""
    answers: dict[str, Answer] = field(default_factory=dict)

    def put(self, key: str, value: Any, *arguments: Argument, remark: str = "") -> None:
        """Set a key, or a fact (`=name`)."""
        if ".N." in key:  # of every source: `combine` sets it when they are known
            self.facts[f"{EACH}{key.rsplit('.', 1)[-1]}"] = value
        elif key.startswith("="):
            self.facts[key.removeprefix("=")] = value
        else:
            self.values[key] = value
        self.origins[key] = list(arguments)
        for argument in arguments:
            answer = self.answers.get(argument.name)
            if answer is not None and not key.startswith("=") and key not in answer.keys:
                answer.keys.append(key)
        if remark:
            self.remarks[key] = remark

    def derive(self, key: str, value: Any, *facts: str, remark: str = "") -> None:
        """Set a key from facts. Its arguments are theirs."""
        found = [argument for fact in facts for argument in self.origins.get(f"={fact}", [])]
        self.put(key, value, *found, remark=remark)

    def drop(self, key: str, why: str, outcome: Outcome = "unneeded") -> None:
        """Remove a key, or a section with all of its keys. The arguments that it comes from get another answer."""
        for known in [one for one in self.values if one == key or one.startswith(f"{key}.")]:
            del self.values[known]
            for argument in self.origins.pop(known, []):
                answer = self.answers.get(argument.name)
                if answer is None:
                    continue
                answer.keys = [one for one in answer.keys if one != known]
                if not answer.keys:
                    answer.outcome, answer.text = outcome, why
                elif outcome == "unsupported":
                    answer.text = "; ".join(filter(None, (answer.text, f"without {known}: {why}")))

    def answer(self, fact: str, outcome: Outcome, text: str) -> None:
        """The answer to the arguments of a fact that makes no key, unless they have one already."""
        for argument in self.origins.get(f"={fact}", []):
            found = self.answers.get(argument.name)
            if found is not None and not found.keys and found.outcome == "taken":
                found.outcome, found.text = outcome, text

    def given(self, name: str) -> Any:
        """The value of another argument of the file, or None."""
        argument = self.arguments.get(name)
        return argument.value if argument is not None else None

    def tree(self) -> dict[str, Any]:
        """The values as nested sections, in the order of a recipe."""
        found: dict[str, Any] = {}
        for key in sorted(self.values, key=_order):
            *above, last = key.split(".")
            section = found
            for step in above:
                section = section.setdefault(step, {})
            section[last] = self.values[key]
        return found


_SECTIONS = ("model", "data", "method", "optim", "train", "scale", "save", "evaluate", "track", "export")
_FIRST = (
    "path",
    "name",
    "to",
    "train",
    "learning_rate",
    "optimizer",
    "mode",
    "loss",
    "epochs",
    "steps",
    "batch_size",
)


def _order(key: str) -> tuple[int, int, int]:
    section, _, rest = key.partition(".")
    first = rest.split(".")[-1] if "." not in rest else rest.split(".")[0]
    known = _FIRST.index(first) if first in _FIRST else len(_FIRST)
    return (_SECTIONS.index(section) if section in _SECTIONS else len(_SECTIONS), known, rest.count("."))


def number(value: Any) -> float | int | None:
    """A finite number, also one that is written as text. None for anything else."""
    found = scalar(value.strip().replace("_", "")) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return found if abs(found) <= _MAX_NUMBER else None  # false for NaN too


def boolean(value: Any) -> bool | None:
    """A truth value, also one that is written as text. None for anything else."""
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    return words.get(str(value).strip().lower())


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[str]:
    """Names of a list, or of a text with commas or spaces between them."""
    if value in (None, "", False):
        return []
    if isinstance(value, list):
        return [str(item) for item in value]
    text = str(value).strip()
    return [item.strip() for item in re.split(r",|\s+" if "," not in text else ",", text) if item.strip()]
