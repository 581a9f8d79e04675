"""The Hugging Face layout: the weights as plain transformers and PEFT read them."""

from __future__ import annotations

from tailor.export.forms.base import ExportForm


class HuggingFace(ExportForm):
    """The run's artifact as it is, which has this layout already, or its adapter merged."""

    weights = ("adapter", "merged", "model")
    takes_checkpoints = True
