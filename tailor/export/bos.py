"""Whether llama.cpp and Ollama put the BOS before a prompt: they ask `add_bos_token` of tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path

from tailor.layout import TOKENIZER_CONFIG
from tailor.store import OBJECT


def set_adds_bos(folder: Path, value: bool) -> None:
    """Set `add_bos_token` of the tokenizer in `folder`."""
    path = folder / TOKENIZER_CONFIG
    config = {**OBJECT.read_path(path), "add_bos_token": value}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
