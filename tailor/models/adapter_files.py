"""The files in a LoRA adapter's folder, in PEFT's layout. All code that writes `adapter_config.json` uses this module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD
from tailor.store import OBJECT, JsonFile
from tailor.store.json_files import Count, Number, Positive

__all__ = ["change_config", "check_weights", "read_config", "set_base", "write_config"]


class _Config(TypedDict):
    """The keys of PEFT's configuration that tailor reads."""

    peft_type: str
    base_model_name_or_path: Annotated[str, Field(min_length=1)]
    revision: NotRequired[str | None]
    r: NotRequired[Positive]
    lora_alpha: NotRequired[Number | None]
    use_rslora: NotRequired[bool]
    use_dora: NotRequired[bool]
    rank_pattern: NotRequired[dict[str, Positive] | None]
    alpha_pattern: NotRequired[dict[str, Number] | None]
    target_modules: NotRequired[list[str] | str | None]
    modules_to_save: NotRequired[list[str] | None]
    trainable_token_indices: NotRequired[list[Count] | dict[str, list[Count]] | None]


_CONFIG_FILE = JsonFile(
    _Config, "restore the file that PEFT or the training run wrote, or copy the adapter again", version=None
)


def check_weights(folder: Path, url: str) -> None:
    """Raise ModelError unless the adapter in `folder` has its weights as safetensors. url: for messages.

    PEFT would also load `adapter_model.bin`, a pickle, which can run code.
    """
    if (folder / ADAPTER_WEIGHTS).is_file():
        return
    pickled = folder / ADAPTER_WEIGHTS.replace(".safetensors", ".bin")
    if pickled.is_file():
        raise ModelError(
            f"the adapter at {url} has its weights in {pickled.name}, a pickle, which can run code when it is loaded",
            hint=f"if you trust it, load it with PEFT and save it again (safe_serialization=True) to get {ADAPTER_WEIGHTS}",
        )
    raise ModelError(f"the adapter at {url} has no {ADAPTER_WEIGHTS}", hint="copy the adapter again")


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter in `folder`. StoreError when it is damaged."""
    return _CONFIG_FILE.read_path(folder / ADAPTER_CONFIG)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write PEFT's configuration into `folder`."""
    _write(folder / ADAPTER_CONFIG, config)


def change_config(folder: Path, **values: Any) -> None:
    """Set some keys of the configuration. The other keys and their order do not change."""
    write_config(folder, {**read_config(folder), **values})


def set_base(folder: Path, base: str) -> None:
    """Write the base (a path or an id on the Hugging Face Hub) into every file of `folder` that names the base."""
    for name, key in ((ADAPTER_CONFIG, "base_model_name_or_path"), (BASE_RECORD, "path")):
        if (folder / name).is_file():
            _write(folder / name, {**OBJECT.read_path(folder / name), key: base})


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
