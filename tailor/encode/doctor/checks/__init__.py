"""The checks of the data doctor, one per file."""

from __future__ import annotations

from tailor.encode.doctor.checks.answers import Truncated
from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.checks.duplicates import Duplicates
from tailor.encode.doctor.checks.encoding import Encoding
from tailor.encode.doctor.checks.labels import Labels
from tailor.encode.doctor.checks.language import Language
from tailor.encode.doctor.checks.left_out import LeftOut
from tailor.encode.doctor.checks.lengths import Lengths
from tailor.encode.doctor.checks.negatives import Negatives
from tailor.encode.doctor.checks.turns import TurnOrder

CHECKS: tuple[Check, ...] = (
    LeftOut(),
    Duplicates(),
    Truncated(),
    Encoding(),
    Language(),
    TurnOrder(),
    Lengths(),
    Labels(),
    Negatives(),
)
"""The checks that need nothing but the rows. `examine` adds those of the chat template and of the overlap."""
