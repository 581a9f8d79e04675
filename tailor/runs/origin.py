"""`origin.json`: the changes of recipe of a run that `save.resume` has resumed with other values.

`origins` lists them, oldest first. Each entry names the checkpoint from which the run was resumed, and the keys that changed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.layout import METRICS, ORIGIN
from tailor.runs.log import before, log_text, read
from tailor.store.json_files import Count, JsonFile, made

if TYPE_CHECKING:
    from tailor.store import Store


@dataclass(frozen=True)
class Origin:
    """One change of the recipe."""

    run: str
    """URL of the run whose checkpoint was loaded."""
    step: Count
    checkpoint: str
    """URL of that checkpoint."""
    changes: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    """Key -> old and new value."""
    first_step: Count
    """The step at which the current data start: 0, or the step of the last change of data or batches."""


class _Origins(TypedDict):
    origins: list[Origin]


ORIGIN_FILE = JsonFile(
    _Origins,
    "restore the file from a copy of the run, or train again with another save.to; it says where the data start",
)


def origins(run: Store) -> list[Origin]:
    """All changes of a run's recipe, oldest first."""
    if not run.exists(ORIGIN):
        return []
    content = run.read_bytes(ORIGIN)
    if content.startswith(b"["):  # of older versions: the list alone
        content = b'{"origins": ' + content + b"}"
    return [made(Origin, entry) for entry in ORIGIN_FILE.parse(content, run.url_of(ORIGIN))["origins"]]


def begin(run: Store, source: Store, origin: Origin) -> None:
    """Write `origin.json` of `run`, including the changes of `source`, and copy the metric records of `source` up to the checkpoint."""
    entries = [entry for entry in origins(source) if entry != origin] + [origin]
    if run.url != source.url:
        kept = before(read(source), origin.step)
        run.write_text(METRICS, log_text(kept))
    ORIGIN_FILE.write(run, ORIGIN, {"origins": [asdict(entry) for entry in entries]})


def changed(origin: Origin) -> list[str]:
    """The changes as text, such as `optim.learning_rate: 0.0002 → 0.0001`."""
    return [f"{key}: {short(old)} → {short(new)}" for key, (old, new) in origin.changes.items()]


def short(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
