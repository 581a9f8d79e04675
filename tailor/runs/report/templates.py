"""Renders the HTML pages of this folder. All values are escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

from markupsafe import Markup

from tailor.printable import printable
from tailor.redaction import redacted


def render(file: str, /, **values: Any) -> str:
    """Render a template file with these values."""
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source), finalize=_shown
    )
    return environment.get_template(file).render(**values)


def _source(name: str) -> str:
    return resources.files("tailor.runs.report").joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """Foreign text on the page: no secrets, and no characters that reverse or hide text. Jinja escapes HTML."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(redacted(value), lines=True)
    return value
