"""Opens an adapter by its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tailor.artifacts.layer_adapter import LayerAdapter
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.models.adapter_files import read_config
from tailor.models.experts.stacks import Stack


def open_adapter(folder: Path, url: str, stacks: Callable[[], Sequence[Stack]] | None = None) -> SavedAdapter:
    """Open the adapter in `folder`. url: for messages. stacks: reads the stacks of experts of the base, if it is at hand.
    ModelError when it cannot be merged, StoreError when it is damaged."""
    peft_type = read_config(folder).get("peft_type")
    return LoraAdapter(folder, url, stacks) if peft_type == "LORA" else LayerAdapter(folder, url)
