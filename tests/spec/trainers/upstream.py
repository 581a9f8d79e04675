"""Arguments of the example configurations of other trainers' repositories: names and values, and nothing else of them.

`upstream.json` has each distinct (name, value) once; an example is a list of their numbers. Its last part has the names of
all arguments that the trainers define.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tailor.spec.moving.draft import Argument


@cache
def _file() -> Any:
    return json.loads((Path(__file__).parent / "upstream.json").read_text())


def examples() -> list[str]:
    """`trainer/example` of every example."""
    return list(_file()["examples"])


def arguments(example: str) -> dict[str, Argument]:
    """The arguments of an example."""
    pairs = _file()["pairs"]
    return {pairs[at][0]: Argument(*pairs[at]) for at in _file()["examples"][example]}


def defined(trainer: str) -> list[str]:
    """Every argument that a trainer defines."""
    return str(_file()["arguments"][trainer]).split()


def trainers() -> list[str]:
    """The trainers of `defined`."""
    return list(_file()["arguments"])
