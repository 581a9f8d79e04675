"""The Hugging Face layout, which transformers and PEFT load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.export.forms.base import CardSection, ExportForm
from tailor.layout import ADAPTER_CONFIG, GENERATIVE_ATTENTION

if TYPE_CHECKING:
    from tailor.export.request import Selection


_USE = """\
Generate with tailor: the model reads prompts in both directions, and transformers, PEFT and vLLM read them causally.

```sh
tailor generate PATH --prompt "…"
```
"""


class HuggingFace(ExportForm):
    """The run's artifact, which already has this layout, or its merged adapter."""

    weights = ("adapter", "merged", "model")
    takes_checkpoints = True

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        from tailor.models.adapter_files import read_config

        if (folder / GENERATIVE_ATTENTION).is_file():
            note = (
                "transformers, PEFT and vLLM read prompts causally, but the model was trained as a prefix LM"
            )
            return [f"{note} (method.generative_attention); generate with `tailor generate`"]
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

    def card(self, folder: Path) -> CardSection | None:
        return CardSection(_USE, {}) if (folder / GENERATIVE_ATTENTION).is_file() else None
