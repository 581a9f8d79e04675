"""The forecasts stay as close to published figures as docs/scaling.md says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tailor.plan.duration import UNCERTAINTY


def load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "published.py"
    spec = importlib.util.spec_from_file_location("published", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published() -> ModuleType:
    return load()


def test_figures_of_torchtune(published: ModuleType) -> None:
    for figure in published.TORCHTUNE:
        gib, speed = published.torchtune(figure)
        assert figure.gib is None or gib == pytest.approx(figure.gib, rel=0.12), figure.what
        factor = figure.tokens_per_second / speed
        assert 1 / UNCERTAINTY["cuda"] < factor < UNCERTAINTY["cuda"], figure.what
    plain, again = (published.torchtune(figure)[0] for figure in published.TORCHTUNE[4:6])
    assert plain > 1.3 * again, "control"


def test_figures_of_unsloth(published: ModuleType) -> None:
    for config, rows in published.UNSLOTH.values():
        for size, length in rows.items():
            if size > 8:  # there, buffers of a constant size matter most
                assert published.unsloth(config, size) == pytest.approx(length, rel=0.25)
