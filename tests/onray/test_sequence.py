"""Two and four Ray workers with sequence parallelism give the curve of one process, and resume with one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.onray import trainer
from tailor.onray.cluster import Cluster
from tailor.onray.supervisor import DriverContext
from tests.helpers.plans import LORA
from tests.onray.conftest import Make

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def losses(made: Any, cluster: Cluster | None) -> list[float]:
    records: list[dict[str, Any]] = []
    trainer.fit(*made, DriverContext(records.append), cluster=cluster)
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.soak
@pytest.mark.parametrize("count", [2, 4])
def test_sequence_parallel_ray_workers_equal_one_process(
    make: Make, cluster: Cluster, tmp_path: Path, count: int
) -> None:
    """Four workers share the two CPUs."""
    sections = {"model": {"adapter": LORA}, "save": {"every": 2}}
    alone = losses(make(tmp_path / "one", **sections), None)
    assert len(alone) == 7
    scale = {"workers": count, "sequence_parallel": count}
    split = make(tmp_path / "together", **sections, scale=scale)
    plan = split[0]
    assert (plan.accumulation, plan.micro_batch_size) == (4, 1), "all workers work on every micro-batch"
    assert losses(split, cluster) == pytest.approx(alone, abs=1e-5)
    longer = {**sections, "train": {"steps": 8}}
    expected = losses(make(tmp_path / "longer", **longer), None)
    assert losses(make(tmp_path / "together", **longer), None) == pytest.approx(expected[6:], abs=1e-5)
