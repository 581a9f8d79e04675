"""What may be deleted: names that tailor makes and files that a commit marker lists, never through a symbolic link.

A folder that has anything else is not deleted, not even in part: the error names what was found.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tailor.errors import StoreError

TEMPORARY = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-.+-[0-9a-f]{8}(-before|-\d{5})?|\.spill-[a-z0-9_]{8}")
Made = Callable[[str], bool]
"""Whether tailor makes a file of this name, relative to the folder that is removed."""
_SHOWN = 3


class DeletionError(StoreError):
    """Something that tailor did not make would have been deleted or replaced. Nothing was changed."""


def is_temporary(name: str) -> bool:
    """Whether a name is one that atomic writes use until they are complete."""
    return _TEMPORARY.fullmatch(name) is not None


def refuse_link(path: Path, anchor: Path) -> None:
    """DeletionError when `path`, or a folder between `anchor` and it, is a symbolic link. The anchor itself may be one."""
    below = path.relative_to(anchor).parts
    for count in range(1, len(below) + 1):
        step = anchor.joinpath(*below[:count])
        if step.is_symlink():
            raise DeletionError(
                f"{step} is a symbolic link to {os.readlink(step)}; tailor does not delete or replace anything through a link",
                hint="remove the link, or move the folder that it points to here",
            )


def refuse_foreign(url: str, names: Iterable[str], made: Made) -> None:
    """DeletionError when a folder has files that tailor did not make. names: of its files, relative to it."""
    foreign = sorted(name for name in names if not made(name) and not is_temporary(name.rpartition("/")[2]))
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise DeletionError(
            f"{url} would be deleted or replaced, but it has files that tailor did not write: "
            f"{', '.join(foreign[:_SHOWN])}{more}",
            hint="move them to another folder, then run the same command again",
        )


def local_files(folder: Path) -> list[str]:
    """Relative names of everything below a local folder that is not a folder. Links are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return found


def remove_local(path: Path, anchor: Path, first: str, made: Made | None) -> None:
    """Remove a local file or folder. first: the file of a folder that goes first. made: None if its name shows that tailor made it.

    DeletionError, before anything is removed, for a link and for files that tailor did not make.
    """
    refuse_link(path, anchor)
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        return
    if made is not None:
        names = local_files(path)
        refuse_foreign(str(path), names, made)
        for name in names:  # a listed file that was replaced by a link is not tailor's file
            refuse_link(path / name, anchor)
    (path / first).unlink(missing_ok=True)
    shutil.rmtree(path)
