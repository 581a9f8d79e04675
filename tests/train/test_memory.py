"""The memory of each kind of step is reported, and an evaluation does not keep memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.train import loop, throughput
from tailor.train.evaluation import evaluate
from tailor.train.session import Session, open_session
from tests.helpers.hosts import PlainHost
from tests.helpers.live_bytes import measured
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("memory")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", [40] * 12, evaluation=[60] * 4)


def left_by_evaluation(session: Session) -> int:
    """Bytes of tensors that are still there after an evaluation."""
    return measured(lambda: evaluate(session, 1)).now


def test_an_evaluation_leaves_no_tensor_behind(made: tuple[Path, Any], tmp_path: Path) -> None:
    session = open_session(make_plan(*made, tmp_path), PlainHost())
    evaluate(session, 0)  # what is made once and kept
    assert left_by_evaluation(session) == 0
    # The control: whoever keeps what the head is given is found out.
    kept: list[Any] = []
    plain = session.model.at_predictions

    def keeping(batch: Any) -> Any:
        kept.append(plain(batch))
        return kept[-1]

    session.model.at_predictions = keeping  # type: ignore[method-assign]
    assert left_by_evaluation(session) > 4 * 64 * 100


def test_each_kind_of_step_tells_its_peak(made: tuple[Path, Any], tmp_path: Path) -> None:
    host = PlainHost()
    loop.run(make_plan(*made, tmp_path, evaluate={"every": 3}), host)
    for kind, count in (("train", 6), ("evaluation", 2)):
        assert sum(record["peak_memory_bytes"] > 0 for record in host.of(kind)) == count


@pytest.mark.skipif(not throughput.CLEAR.exists(), reason="only Linux can reset the peak memory of a process")
def test_start_peak_resets_the_peak() -> None:
    large = torch.ones(100 * 2**20 // 4)
    before = throughput.peak_memory_bytes(CPU)
    del large
    assert throughput.peak_memory_bytes(CPU) == before
    throughput.start_peak(CPU)
    assert throughput.peak_memory_bytes(CPU) < before - 50 * 2**20
