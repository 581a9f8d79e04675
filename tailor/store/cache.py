"""Where this machine keeps copies of remote files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """This machine's cache of remote files: `TAILOR_CACHE`, else `tailor` in the user's cache folder."""
    if chosen := os.environ.get("TAILOR_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailor"
