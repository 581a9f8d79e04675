"""Models in one `.gguf` file (llama.cpp), read by transformers: the weights are dequantized when they are loaded.

The configuration and the tokenizer are converted into a folder of the cache, in which a link leads to the file. Everything
that reads a model folder reads that folder.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tailor.errors import ModelError
from tailor.store import cache_folder
from tailor.store.scratch import scratch

SUFFIX = ".gguf"
WEIGHTS = "weights.gguf"
"""The link to the file in the converted folder."""


def readable(path: str) -> str:
    """The path that transformers can read: for a `.gguf` file its converted folder, else `path` itself. ModelError."""
    return str(converted(Path(path))) if path.endswith(SUFFIX) and "://" not in path else path


def converted(file: Path) -> Path:
    """The folder with the configuration and the tokenizer of a `.gguf` file. ModelError if transformers cannot read it."""
    if find_spec("gguf") is None:
        raise ModelError(
            f"model.path {file}: .gguf files need the package gguf (pip install 'tailor[gguf]')",
            hint="install the package",
        )
    try:
        about = file.stat()
    except OSError as error:
        raise ModelError(f"model.path {file}: {error.strerror}", hint="restore the file") from None
    import transformers

    identity = (str(file.resolve()), about.st_size, about.st_mtime_ns, transformers.__version__)
    root = cache_folder() / "gguf"
    folder = root / hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with scratch(root) as made:
            whole = made / folder.name
            whole.mkdir()
            _convert(file.resolve(), whole)
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    os.symlink(file, folder / WEIGHTS)
    given: dict[str, Any] = {"gguf_file": WEIGHTS, "local_files_only": True}
    try:
        AutoConfig.from_pretrained(str(folder), **given).save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(folder), **given).save_pretrained(folder)
    except (
        Exception
    ) as error:  # of many kinds: another format, an unknown architecture or tokenizer, a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"model.path {file}: transformers cannot read the file: {reason}",
            hint="check that the file is complete; transformers lists the architectures that it reads in its page on GGUF",
        ) from error
