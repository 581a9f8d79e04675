"""The files in a LoRA adapter's folder, in PEFT's layout. All code that writes `adapter_config.json` uses this module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tailor.layout import ADAPTER_CONFIG, BASE_RECORD

__all__ = ["change_config", "read_config", "set_base", "write_config"]


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter in `folder`."""
    return _read(folder / ADAPTER_CONFIG)


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
            _write(folder / name, {**_read(folder / name), key: base})


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
