"""`save`: the run's folder and its checkpoints."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section


class Save(Section):
    """The run's folder and its checkpoints."""

    to: str = Field(min_length=1)
    """The run's folder, an fsspec URL."""

    every: int | None = Field(None, ge=1)
    """Steps between checkpoints. Default: only at the end."""

    keep: int = Field(3, ge=1)
    """Checkpoints kept, the newest first."""

    best: bool = False
    """Also keep the checkpoint of the lowest evaluation loss, and make the final artifact from it."""

    resume: str = Field("auto", min_length=1)
    """`auto` goes on from the folder's last checkpoint, `never` refuses a folder that already holds a run.

    The folder of a run goes on from that run's last checkpoint with what this recipe changes: more or fewer
    epochs or steps, other data, another learning rate or schedule, another batch size, seed or evaluation.
    """
