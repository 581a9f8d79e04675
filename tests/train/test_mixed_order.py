"""Sources mixed by tokens and a curriculum over lengths: a killed run resumes exactly, and micro-batches change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.cli.plan import lines
from tailor.plan import Plan
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import CPU, make_plan
from tests.helpers.stores import make_store
from tests.train.test_checkpoint import Stopped, StoppingHost

Made = tuple[Path, Any]
LENGTHS = [8, 9, 10, 11] * 10 + [40, 60] * 6
MIXED: dict[str, Any] = {
    "train": [{"path": "short.jsonl", "weight": 1}, {"path": "long.jsonl", "weight": 3}],
    "max_length": 64,
    "weight_by": "tokens",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("mixed")
    sources = [0] * 40 + [1] * 12
    return tiny_llama(folder / "model"), make_store(folder / "tokens", LENGTHS, sources=sources)


def plan(made: Made, run: Path, **train: Any) -> Plan:
    sections = {"data": MIXED, "train": {"order": "short_to_long", "steps": 6, **train}}
    return make_plan(*made, run, **sections, save={"every": 2})


@pytest.fixture(scope="module")
def whole(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the undisturbed run."""
    return losses(plan(made, tmp_path_factory.mktemp("whole")))


def losses(made: Plan) -> list[float]:
    host = PlainHost()
    loop.run(made, host)
    return host.losses()


def test_a_killed_run_resumes_exactly(made: Made, whole: list[float], tmp_path: Path) -> None:
    again = plan(made, tmp_path / "run")
    with pytest.raises(Stopped):
        loop.run(again, killed := StoppingHost())
    rest = PlainHost(resume_from=again.run_url)
    loop.run(again, rest)
    assert [*killed.losses()[:4], *rest.losses()] == whole
    assert len(rest.losses()) == 2


def test_micro_batches_do_not_change_the_curve(made: Made, whole: list[float], tmp_path: Path) -> None:
    assert losses(plan(made, tmp_path / "four", micro_batch_size=4)) == pytest.approx(whole, abs=1e-5)
    other = losses(plan(made, tmp_path / "shuffled", order="shuffled"))
    assert np.abs(np.subtract(other, whole)).max() > 1e-3, "control"


def test_the_plan_shows_the_tokens_of_each_source(made: Made, tmp_path: Path) -> None:
    total = sum(LENGTHS)
    mixed = plan(made, tmp_path / "run", steps=None)
    shown = [value for label, value in lines(mixed, CPU) if label == "source"]
    assert [source.path for source in mixed.source_tokens] == ["short.jsonl", "long.jsonl"]
    assert sum(source.tokens for source in mixed.source_tokens) == pytest.approx(total, abs=35)
    assert shown[1].endswith(f"({mixed.source_tokens[1].tokens:,}): long.jsonl")
    share = mixed.source_tokens[1].tokens / sum(source.tokens for source in mixed.source_tokens)
    assert share == pytest.approx(0.75, abs=60 / total)
    by_rows = make_plan(*made, tmp_path / "rows", data={**MIXED, "weight_by": "rows"})
    assert [source.tokens for source in by_rows.source_tokens] == [380, 1800], "control"


def test_a_curriculum_that_ends_early_is_reported(made: Made, tmp_path: Path) -> None:
    notes = plan(made, tmp_path / "run", steps=2).notes()
    assert any("2 steps end before the longest rows" in note for note in notes)
    for other in ({"steps": 2, "order": "shuffled"}, {"steps": None, "epochs": 1}):
        assert not any("longest rows" in note for note in plan(made, tmp_path / "run", **other).notes())
