"""Options of the whole suite."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-fixtures", action="store_true", help="Write the expected texts anew.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run only where there is one, those marked `soak` only when SOAK says how long."""
    absent = [
        marker
        for marker, there in (("gpu", shutil.which("nvidia-smi")), ("soak", os.environ.get("SOAK")))
        if not there
    ]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
