"""The lines of libraries stay out of the output."""

from __future__ import annotations

import logging

import pytest

from tailor import quiet


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize(("silenced", "lines"), [(True, ["broken"]), (False, ["no GPU", "broken"])])
def test_a_package_that_sets_its_level_at_import(
    silenced: bool, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{quiet.SETS_ITS_LEVEL}-{silenced}"
    monkeypatch.setattr(quiet, "SETS_ITS_LEVEL", name)
    for variable in quiet.ENVIRONMENT:
        monkeypatch.setenv(variable, "")
    if silenced:
        quiet.quiet()
    logger, kept = logging.getLogger(name), Kept()
    logger.setLevel(logging.WARNING)  # at import
    logger.addHandler(kept)
    logger.warning("no GPU")
    logger.error("broken")
    assert kept.lines == lines
