"""One trained run for all export tests, which only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.plans import LORA
from tests.helpers.trained_runs import finished_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    made = finished_run(folder, {"adapter": LORA, "quantize": {"type": "nf4"}})
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    return made
