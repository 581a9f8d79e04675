"""Two and four Ray workers that hold sequences together give the curve of one process, and go on alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.onray import trainer
from tailor.onray.cluster import Cluster
from tailor.onray.supervisor import Watch
from tests.helpers.plans import LORA
from tests.onray.conftest import Make

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def losses(made: Any, cluster: Cluster | None) -> list[float]:
    records: list[dict[str, Any]] = []
    trainer.fit(*made, Watch(records.append), cluster=cluster)
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_ray_workers_hold_sequences_together(
    make: Make, cluster: Cluster, tmp_path: Path, count: int
) -> None:
    """Four share the two CPUs."""
    sections = {"model": {"adapter": LORA}, "save": {"every": 2}}
    alone = losses(make(tmp_path / "one", **sections), None)
    assert len(alone) == 7
    scale = {"workers": count, "sequence_parallel": count}
    together = make(tmp_path / "together", **sections, scale=scale)
    plan = together[0]
    assert (plan.accumulation, plan.micro_batch_size) == (4, 1), "every micro-batch is all workers'"
    assert losses(together, cluster) == pytest.approx(alone, abs=1e-5)
    longer = {**sections, "train": {"steps": 8}}
    expected = losses(make(tmp_path / "longer", **longer), None)
    assert losses(make(tmp_path / "together", **longer), None) == pytest.approx(expected[6:], abs=1e-5)
