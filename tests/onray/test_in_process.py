"""A run in the command's process leaves nothing behind that the next one would find."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tailor.onray import trainer, worker


@pytest.mark.parametrize(
    "error", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["none", "error", "Ctrl-C"]
)
def test_the_process_group_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    def train(config: dict[str, Any]) -> str:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        if error is not None:
            raise error
        return "finished"

    monkeypatch.setattr(worker, "train", train)
    driver: Any = SimpleNamespace(publish=None, interrupts=None)
    task: Any = None
    if error is None:
        assert trainer._fit_in_process(task, driver)
    else:
        with pytest.raises(type(error)):
            trainer._fit_in_process(task, driver)
    assert not dist.is_initialized()
