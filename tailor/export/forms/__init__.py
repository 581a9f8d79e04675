"""Export forms: the layouts that `tailor export --as` writes, one file each.

Other packages register forms with an entry point of the group `tailor.export_forms` (docs/extending.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tailor.errors import ModelError, TailorError
from tailor.export.forms.base import CardSection, ExportForm
from tailor.registry import Registry

__all__ = ["EXPORT_FORMS", "CardSection", "ExportForm", "check_options", "find_form"]

EXPORT_FORMS: Registry[type[ExportForm]] = Registry(
    "tailor.export_forms",
    {
        "huggingface": "tailor.export.forms.huggingface:HuggingFace",
        "sentence-transformers": "tailor.export.forms.sentence_transformers:SentenceTransformers",
        "gguf": "tailor.export.forms.gguf:Gguf",
        "ollama": "tailor.export.forms.ollama:Ollama",
    },
)


def find_form(name: str) -> ExportForm:
    """The export form `name`. ModelError for an unknown name, ExtensionError when its package cannot be loaded."""
    if name not in EXPORT_FORMS:
        near = difflib.get_close_matches(name, EXPORT_FORMS.names(), n=1, cutoff=0.7)
        raise ModelError(
            f"--as {name}: unknown export form" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"use {', '.join(EXPORT_FORMS.names())}, or install the package that provides it",
        )
    return EXPORT_FORMS.get(name)()


def check_options(name: str, given: Iterable[str]) -> None:
    """TailorError when the form `name` does not read one of the `given` form-specific options."""
    own = find_form(name).options
    for option in given:
        if option not in own:
            others = [other for other in EXPORT_FORMS.names() if option in EXPORT_FORMS.get(other).options]
            raise TailorError(
                f"--{option.replace('_', '-')} has no effect with --as {name}; only --as {' or '.join(others)} uses it"
            )
