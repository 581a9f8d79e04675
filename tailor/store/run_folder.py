"""Read a run folder: its checkpoints, artifact and answers. `tailor.layout` defines and explains the file names."""

from __future__ import annotations

import difflib
import json
import posixpath
from typing import Any

from tailor.errors import StoreError
from tailor.layout import (
    ARTIFACTS,
    CHAT_TEMPLATE,
    CHECKPOINTS,
    DATA_REPORT,
    GENERATED,
    RECIPE,
    STATE,
    TOKENIZER_CONFIG,
    TOKENS,
    WEIGHTS,
)
from tailor.store import Store


def name(run: Store) -> str:
    """The last part of the folder's path."""
    return posixpath.basename(run.url.rstrip("/"))


def holds_run(run: Store) -> bool:
    """Whether a folder is a run folder."""
    return run.exists(RECIPE)


def read_json(run: Store, file: str) -> dict[str, Any]:
    """The content of a JSON file, or an empty dict when the run ended before writing it."""
    value: dict[str, Any] = run.read_json(file) if run.exists(file) else {}
    return value


def checkpoints(run: Store) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    folder = run.join(CHECKPOINTS)
    return [step for step in folder.names() if step.startswith("step-") and folder.is_committed(step)]


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def is_checkpoint(folder: Store) -> bool:
    """Whether a folder is a checkpoint, possibly a damaged one."""
    return any(folder.exists(name) for name in (STATE, WEIGHTS))


def latest_checkpoint(run: Store) -> str | None:
    """URL of the newest complete checkpoint, or None."""
    names = checkpoints(run)
    return run.join(CHECKPOINTS, names[-1]).url if names else None


def step_of(checkpoint: str) -> int:
    """The step of a checkpoint, from its name or URL."""
    return int(checkpoint.rstrip("/").rpartition("step-")[2])


def artifact(run: Store) -> str | None:
    """Name of the final artifact's folder (`adapter`, `model` or `beacon`), or None before the run has written it."""
    return next((kind for kind in ARTIFACTS if run.is_committed(kind) or run.names(kind)), None)


def can_chat(run: Store) -> bool:
    """Whether the run has an artifact with a chat template and was trained on conversations, as `tailor chat` needs."""
    kind = artifact(run)
    if read_json(run, DATA_REPORT).get("template", "") is None or kind is None:
        return False
    if run.exists(f"{kind}/{CHAT_TEMPLATE}"):
        return True
    return bool(read_json(run, f"{kind}/{TOKENIZER_CONFIG}").get("chat_template"))


def answers(run: Store, when: str) -> list[dict[str, Any]]:
    """The records of the answers generated `before` or `after` training; empty when there are none."""
    file = GENERATED[when]
    if not run.exists(file):
        return []
    return [json.loads(line) for line in run.read_text(file).split("\n") if line]


def find(url: str) -> Store:
    """The run at a URL or path. StoreError, with a hint to similar names, when there is none."""
    run = Store(url)
    if holds_run(run):
        return run
    raise StoreError(f"no run at {url}: it has no {RECIPE}", hint=_suggestion(url, run))


def _suggestion(url: str, folder: Store) -> str:
    """A hint which run folder could be meant."""
    if folder.is_file():
        return "give the run's folder, which is save.to of its recipe"
    parent, last = posixpath.split(folder.url.rstrip("/"))
    above = posixpath.dirname(url.rstrip("/"))
    if above and holds_run(Store(parent)):
        return f"the run folder is {above}"
    near = difflib.get_close_matches(last, [name(other) for other in below(Store(parent))], n=3, cutoff=0.5)
    if near and not folder.exists():
        return "did you mean " + " or ".join(posixpath.join(above, other) for other in near) + "?"
    return "`tailor runs` lists the runs below a folder"


def below(folder: Store, *, depth: int = 3) -> list[Store]:
    """The runs in a folder and in its subfolders down to `depth` levels, sorted by path."""
    runs: list[Store] = []
    for child in folder.names():
        if child.startswith(".") or posixpath.splitext(child)[1]:
            continue
        run = folder.join(child)
        if holds_run(run):
            runs.append(run)
        elif depth > 1 and child != TOKENS:
            runs.extend(below(run, depth=depth - 1))
    return runs
