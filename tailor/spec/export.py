"""`export`: what is pushed to the Hugging Face hub when the run has finished."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.base import Section


class Export(Section):
    """What is pushed to the Hugging Face hub when the run has finished.

    `tailor export` and `tailor push` do the same at any later time.
    """

    push_to_hub: str | None = Field(None, min_length=1)
    """Hub repository `owner/name` to which the trained model and its model card are pushed. Needs `HF_TOKEN` in the
    environment. Default: nothing is pushed.
    """

    weights: Literal["adapter", "merged"] | None = None
    """What is pushed for a run with an adapter: the `adapter` (the default), or the base model with the adapter
    `merged` into it.
    """

    private: bool = True
    """Make the repository private if it is created by this push."""
