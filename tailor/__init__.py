"""tailor: declarative fine-tuning recipes on Ray."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Evaluation", "LoadedRecipe", "Run", "TailorError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first access: every command imports this module, and must not pay for the import of the interface.
    if name not in __all__:
        raise AttributeError(f"module 'tailor' has no attribute {name!r}")
    return getattr(importlib.import_module("tailor.errors" if name == "TailorError" else "tailor.api"), name)
