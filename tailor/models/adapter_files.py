"""The files in an adapter's folder, in PEFT's layout. All code that writes `adapter_config.json` uses this module."""

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

__all__ = ["change_config", "check_init", "check_weights", "read_config", "set_base", "write_config"]


class _Config(TypedDict):
    """The keys of PEFT's configuration that tailor reads."""

    peft_type: str
    base_model_name_or_path: Annotated[str, Field(min_length=1)]
    revision: NotRequired[str | None]
    r: NotRequired[Count]
    alpha: NotRequired[Number | None]
    oft_block_size: NotRequired[Count]
    feedforward_modules: NotRequired[list[str] | str | None]
    lora_alpha: NotRequired[Number | None]
    use_rslora: NotRequired[bool]
    use_dora: NotRequired[bool]
    init_lora_weights: NotRequired[bool | str | None]
    rank_pattern: NotRequired[dict[str, Positive] | None]
    alpha_pattern: NotRequired[dict[str, Number] | None]
    target_modules: NotRequired[list[str] | str | None]
    modules_to_save: NotRequired[list[str] | None]
    trainable_token_indices: NotRequired[list[Count] | dict[str, list[Count]] | None]


class _Ranked(_Config):
    """The same of every kind but OFT, which writes its rank as 0 if it has a block size."""

    r: NotRequired[Positive]


_RESTORE = "restore the file that PEFT or the training run wrote, or copy the adapter again"
_ANY_FILE = JsonFile(_Config, _RESTORE, version=None)
_RANKED_FILE = JsonFile(_Ranked, _RESTORE, version=None)


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


_ON_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` with which an adapter is trained on the base as it is. Others, such as `pissa`, change the
base's weights first."""


def check_init(config: dict[str, Any], url: str) -> None:
    """ModelError for an adapter that was not trained on its base, but on a changed one. config: of the adapter at `url`."""
    if (init := config.get("init_lora_weights")) not in _ON_THE_BASE:
        raise ModelError(
            f"the adapter at {url} was made with init_lora_weights: {init}, which changes the base's weights, so its updates "
            "are not those of its base",
            hint="save it from its training with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA "
            "adapter (runs of tailor always save one)",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter in `folder`. StoreError when it is damaged."""
    config = _ANY_FILE.read_path(folder / ADAPTER_CONFIG)
    return config if config["peft_type"] == "OFT" else _RANKED_FILE.read_path(folder / ADAPTER_CONFIG)


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
