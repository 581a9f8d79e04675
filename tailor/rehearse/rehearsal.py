"""The state of a rehearsal: the recipe, its small variants, and the folders that are removed at the end."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.rehearse.reduced import Override
from tailor.store import Store
from tailor.store.removal import TEMPORARY
from tailor.store.scratch import scratch

if TYPE_CHECKING:
    from tailor.data.token_store import TokenStore
    from tailor.onray.run import Outcome
    from tailor.spec.recipe import Recipe


@dataclass
class Rehearsal:
    """What the checks share. A check sets what later ones need."""

    path: str
    overrides: list[str]
    cluster: str | None
    forms: list[str]
    folder: Path
    """A local temporary folder, for the twin."""
    stack: ExitStack
    recipe: Any = None
    """The recipe as it is."""
    sampled: Any = None
    """The recipe with the first rows of its sources, on one CPU worker."""
    small: Any = None
    """The recipe that is trained."""
    prefix: str = ""
    """The temporary folder in the recipe's storage."""
    tokens: TokenStore | None = None
    """The prepared rows of `sampled`."""
    outline: Any = None
    outcome: Outcome | None = None
    corpora: dict[str, int] = field(default_factory=dict)
    """Key of a retrieval whose corpus is too large to embed here -> its passages."""
    changed: list[Override] = field(default_factory=list)
    """The overrides that made the recipe small."""

    @property
    def twin(self) -> str:
        return str(self.folder / "twin")


@contextmanager
def rehearsal(path: str, overrides: list[str], cluster: str | None, forms: list[str]) -> Iterator[Rehearsal]:
    """A rehearsal whose temporary folders are removed at the end, also after an error."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        (folder / "twin").mkdir()
        yield Rehearsal(path, overrides, cluster, forms, folder, stack)


def temporary_prefix(recipe: Recipe, stack: ExitStack) -> str:
    """The URL of a temporary folder beside the recipe's run folder, removed when `stack` closes. Raises StoreError."""
    parent = Store(posixpath.dirname(Store(recipe.save.to).url.rstrip("/")))
    name = f"{TEMPORARY}rehearsal-{uuid.uuid4().hex[:8]}"
    missing = _missing(Path(parent.url)) if parent.is_local else []
    stack.callback(_remove_empty, missing)
    stack.callback(parent.remove, name)
    made = parent.join(name)
    made.make()
    return made.url


def _missing(folder: Path) -> list[Path]:
    """The folders from `folder` upward that do not exist."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # something else has been written there meanwhile
            os.rmdir(folder)
