"""The Hugging Face layout, which transformers and PEFT load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.export.forms.base import ExportForm
from tailor.layout import ADAPTER_CONFIG

if TYPE_CHECKING:
    from tailor.export.request import Selection


class HuggingFace(ExportForm):
    """The run's artifact, which already has this layout, or its merged adapter."""

    weights = ("adapter", "merged", "model")
    takes_checkpoints = True

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        from tailor.models.adapter_files import read_config

        if not (folder / ADAPTER_CONFIG).is_file():
            return ()
        config = read_config(folder)
        if config["peft_type"] != "LORA":
            return ["vLLM loads only LoRA adapters; for it, export with --weights merged"]
        if config.get("trainable_token_indices"):
            return [
                "vLLM cannot load an adapter with new tokens (model.add_tokens); for it, export with --weights merged"
            ]
        return ()
