"""Whether llama.cpp can have the recipe's base as a GGUF file, as far as its configuration and tokenizer show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tailor.doctor.finding import Context, Finding
from tailor.errors import ModelError


def check(context: Context) -> Iterator[Finding]:
    """Only of a base on this machine that is trained to generate, and if `tailor[gguf]` is installed."""
    if context.recipe is None or not (folder := Path(context.recipe.model.path)).is_dir():
        return
    method = context.recipe.method
    if method.ranked_passages is not None or (
        method.embedding is not None and not method.embedding.generates
    ):
        return
    from tailor.export.gguf import folder as gguf_folder

    if not gguf_folder.is_installed():
        return
    try:
        gguf_folder.check_base(folder)
    except ModelError as error:
        yield Finding(
            "warning", f"export as GGUF: {error.message}", f"{error.hint}; training does not need it"
        )
        return
    yield Finding("ok", "export as GGUF: llama.cpp knows the architecture, and reads the tokenizer as it is")
