"""The Hugging Face layout, which transformers and PEFT load."""

from __future__ import annotations

from pathlib import Path

from tailor.export.forms.base import CardSection, ExportForm
from tailor.layout import GENERATIVE_ATTENTION

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
    for_several_engines = True

    def card(self, folder: Path) -> CardSection | None:
        return CardSection(_USE, {}) if (folder / GENERATIVE_ATTENTION).is_file() else None
