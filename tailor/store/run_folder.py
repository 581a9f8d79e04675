"""Read a run folder: its checkpoints, artifact and answers. `tailor.layout` defines and explains the file names."""

from __future__ import annotations

import difflib
import posixpath
import re

from tailor.errors import StoreError
from tailor.layout import (
    ARTIFACTS,
    CHAT_TEMPLATE,
    CHECKPOINTS,
    RECIPE,
    STATE,
    TOKENIZER_CONFIG,
    TOKENS,
    WEIGHTS,
)
from tailor.store.json_files import OBJECT
from tailor.store.run_files import data_report
from tailor.store.store import Store


def name(run: Store) -> str:
    """The last part of the folder's path."""
    return posixpath.basename(run.url.rstrip("/"))


def holds_run(run: Store) -> bool:
    """Whether a folder is a run folder."""
    return run.exists(RECIPE)


def checkpoints(run: Store) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    folder = run.join(CHECKPOINTS)
    return [step for step in folder.names() if CHECKPOINT_NAME.fullmatch(step) and folder.is_committed(step)]


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


CHECKPOINT_NAME = re.compile(r"step-\d{8}")
_CHECKPOINT_FILES = re.compile(
    r"COMMIT|\.uploading|state\.json|weights\.safetensors|optimizer\.pt"
    r"|(weights|optimizer)-\d{5}-of-\d{5}\.safetensors|\.share-\d{5}-[0-9a-f]{8}(\.tmp)?"
)


def is_checkpoint_file(name: str) -> bool:
    """Whether tailor writes a file of this name into a checkpoint's folder, complete or not."""
    return _CHECKPOINT_FILES.fullmatch(name) is not None


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
    if kind is None or data_report(run).get("template", "") is None:
        return False
    if run.exists(f"{kind}/{CHAT_TEMPLATE}"):
        return True
    settings = f"{kind}/{TOKENIZER_CONFIG}"
    return run.exists(settings) and bool(OBJECT.read(run, settings).get("chat_template"))


def find(url: str) -> Store:
    """The run at a URL or path. StoreError, with a hint to similar names, when there is none."""
    run = Store(url)
    if holds_run(run):
        return run
    problem = f"it has no {RECIPE}" if run.exists() else "it does not exist"
    raise StoreError(f"no run at {url}: {problem}", hint=_suggestion(url, run))


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
