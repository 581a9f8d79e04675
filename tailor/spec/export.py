"""`export`: what is handed over when the run has finished."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.base import Section


class Export(Section):
    """What is handed over when the run has finished. `tailor export` and `tailor push` do it later, or again."""

    push_to_hub: str | None = Field(None, min_length=1)
    """Repository `owner/name` of the Hugging Face hub that the artifact goes to, with its card. Needs `HF_TOKEN` in the environment."""

    weights: Literal["adapter", "merged"] | None = None
    """Push the adapter (the default), or a model with the adapter merged into the base. Needs an adapter."""

    private: bool = True
    """Make a new repository private."""
