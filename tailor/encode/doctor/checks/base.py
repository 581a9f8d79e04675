"""The base of the doctor's checks."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.encode.doctor.finding import Finding
from tailor.encode.doctor.rows import Examined, Row, Tally


class Check:
    """A check sees every row, and then the counts of all rows. It keeps no state of its own, so that tasks run anywhere."""

    def row(self, row: Row, tally: Tally) -> None:
        """Look at a row that has a record. A column that a check fills gets a value for every record."""

    def findings(self, examined: Examined) -> Iterator[Finding]:
        """What the check found in all rows."""
        yield from ()
