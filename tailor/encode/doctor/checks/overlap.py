"""Training rows that contain texts of a benchmark or of an evaluation row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, decontaminate, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.similarity.overlap import SIZE, Reference


class Overlap(Check):
    """N-gram overlap with the benchmarks of the recipe, others, and the evaluation rows; None without such rows.

    others: paths of the other benchmarks.
    """

    def __init__(
        self,
        recipe: Reference | None,
        named: Reference | None,
        evaluation: Reference | None,
        others: Sequence[str],
    ) -> None:
        self._references = {"recipe": recipe, "named": named, "evaluation": evaluation}
        self._others = tuple(others)

    def row(self, row: Row, tally: Tally) -> None:
        if row.split != "train":
            return
        for kind, reference in self._references.items():
            if reference is not None and (match := reference.match(row.hashed)) is not None:
                tally.add(f"overlap-{kind}", row, f"contains {match.share:.0%} of {match.name}")

    def findings(self, examined: Examined) -> Iterator[Finding]:
        recipe = [benchmark.path for benchmark in examined.data.decontaminate]
        message = "training rows that contain a text of a benchmark"
        yield from finding_of(
            "benchmark_leakage",
            "info",
            f"{message}, and data.decontaminate leaves them out",
            examined.found.get("overlap-recipe"),
        )
        yield from finding_of(
            "benchmark_leakage",
            "error",
            message,
            examined.found.get("overlap-named"),
            decontaminate([*recipe, *self._others]),
        )
        yield from finding_of(
            "evaluation_overlap",
            "warning",
            f"training rows that contain at least half of the runs of {SIZE} words of an evaluation text",
            examined.found.get("overlap-evaluation"),
            decontaminate(source.path for source in examined.data.evaluation),
        )
