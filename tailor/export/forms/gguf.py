"""`tailor export --as gguf`: one file for llama.cpp and the programs that are built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.export.forms.base import CardSection, ExportForm
from tailor.export.gguf.folder import card_section, check_gguf, replace_weights
from tailor.export.gguf.types import DEFAULT, GgufType, find_type
from tailor.layout import GGUF_FILE

if TYPE_CHECKING:
    from tailor.export.request import Selection, Weights

_USE = """\
```sh
llama-server -m PATH/{file}
```

The chat template and the stop tokens are in the file. It was {proof}.
"""


class Gguf(ExportForm):
    """A GGUF file, made by llama.cpp's converter and quantizer, and compared with the model before it is published."""

    weights = ("merged", "model")
    options = ("type", "llama_cpp")

    def refusal(self, weights: Weights) -> str:
        return "a GGUF file has the whole model, not an adapter"

    def check(self, selection: Selection) -> None:
        _type(selection)
        check_gguf(selection)

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        kind = _type(selection)
        return [f"{kind.name}: {replace_weights(folder, selection, kind).line()}"]

    def card(self, folder: Path) -> CardSection | None:
        return card_section(folder, _USE)

    def next_step(self, url: str) -> str:
        return f"llama-server -m {url}/{GGUF_FILE}"


def _type(selection: Selection) -> GgufType:
    return find_type(selection.request.type or DEFAULT)
