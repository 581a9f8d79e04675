"""`save`: the run's folder and its checkpoints."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section


class Save(Section):
    """The run's folder and its checkpoints."""

    to: str = Field(min_length=1)
    """The run's folder: a local path or an fsspec URL such as `s3://bucket/runs/a`. With several machines, all of
    them must see it.
    """

    every: int | None = Field(None, ge=1)
    """Steps between checkpoints. Default: one checkpoint, after the last step. Set it for runs that may be
    interrupted.
    """

    keep: int = Field(3, ge=1)
    """Number of newest checkpoints that are kept; older ones are deleted."""

    best: bool = False
    """Also keep the checkpoint with the lowest evaluation loss, and save the final model from it. Needs
    `evaluate.every`.
    """

    resume: str = Field("auto", min_length=1)
    """`auto` resumes from the last checkpoint in the run's folder, if there is one. `never` stops with an error if
    the folder has a run already.

    The folder of another run continues that run from its last checkpoint, with the changes of this recipe: more or
    fewer epochs or steps, other data, another learning rate or schedule, another batch size, seed or evaluation.
    """
