"""Two Ray workers with sharded weights give the curve of one process, and resume with one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.onray import trainer
from tailor.onray.cluster import Cluster
from tailor.onray.supervisor import DriverContext
from tests.helpers.strategies import under
from tests.onray.conftest import Make

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def losses(made: Any, cluster: Cluster | None) -> list[float]:
    records: list[dict[str, Any]] = []
    trainer.fit(*made, DriverContext(records.append), cluster=cluster)
    return [record["loss"] for record in records if "loss" in record]


# The strategies themselves: tests/train/strategy. These show that Ray's workers start them.
@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["fsdp", "zero-1", "zero-2", "zero-3"])
def test_two_ray_workers_equal_one_process(
    make: Make, cluster: Cluster, tmp_path: Path, strategy: str
) -> None:
    alone = losses(make(tmp_path / "one"), None)
    run = tmp_path / "two"
    assert losses(make(run, scale=under(strategy)), cluster) == pytest.approx(alone, abs=1e-5)
    assert (run / "checkpoints" / "step-00000006" / "weights-00002-of-00002.safetensors").is_file()
    if strategy == "zero-3":
        longer = {"train": {"steps": 7}}
        alone = losses(make(tmp_path / "one", **longer), None)
        again = losses(make(run, **longer, scale=under("ddp", 1)), None)
        assert again == pytest.approx(alone, abs=1e-5)
