"""The Hugging Face layout, which transformers and PEFT load."""

from __future__ import annotations

from tailor.export.forms.base import ExportForm


class HuggingFace(ExportForm):
    """The run's artifact, which already has this layout, or its merged adapter."""

    weights = ("adapter", "merged", "model")
    takes_checkpoints = True
