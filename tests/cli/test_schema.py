from __future__ import annotations

import pytest

from tailor.cli.main import main
from tailor.spec.reading.json_schema import schema_text
from tailor.spec.reading.reference import reference


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text()
    assert main(["schema", "--reference"]) == 0
    assert capsys.readouterr().out == reference()
