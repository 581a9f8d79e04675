"""Two Ray workers with two micro-batches each give the curve of one process with four."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.onray import trainer
from tailor.onray.cluster import Cluster
from tailor.onray.supervisor import DriverContext
from tests.helpers.plans import LORA
from tests.onray.conftest import Make

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

CASES: dict[str, dict[str, Any]] = {
    "full, packed": {},
    "lora, unpacked": {"model": {"adapter": {**LORA, "dropout": 0.1}}, "data": {"pack": False}},
}
"""The other two combinations are tested without Ray in `tests/train/test_parity.py`."""


def losses(made: Any, cluster: Cluster | None) -> list[float]:
    records: list[dict[str, Any]] = []
    trainer.fit(*made, DriverContext(records.append), cluster=cluster)
    return [record["loss"] for record in records if "loss" in record]


# tests/onray/test_workers.py compares a full model with packing on every run of the tests.
@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_two_ray_workers_equal_one_process(make: Make, cluster: Cluster, tmp_path: Path, case: str) -> None:
    one = make(tmp_path / "one", **CASES[case])
    two = make(tmp_path / "two", **CASES[case], scale={"workers": 2})
    assert (one[0].accumulation, two[0].accumulation) == (4, 2)
    alone = losses(one, None)
    assert len(alone) == 7
    assert losses(two, cluster) == pytest.approx(alone, abs=1e-5)
