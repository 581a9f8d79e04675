"""The HTML page of `tailor data doctor`: self-contained, with the style of a run's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailor.encode.doctor.finding import summary
from tailor.printable import printable
from tailor.runs.report.templates import render

if TYPE_CHECKING:
    from tailor.encode.doctor.examine import Diagnosis

TEMPLATE = "doctor.html.jinja"


def page(recipe: str, diagnosis: Diagnosis) -> str:
    """The page. recipe: the name of the recipe's file."""
    return render(
        TEMPLATE,
        name=printable(recipe),
        rows=diagnosis.rows,
        summary=summary(diagnosis.counts()),
        findings=diagnosis.findings,
    )
