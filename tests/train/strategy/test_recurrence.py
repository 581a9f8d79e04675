"""Packed documents of models with recurrent layers under the strategies that shard weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from tailor.errors import ModelError
from tailor.models import sharded_load
from tailor.plan import Plan
from tailor.plan.facts import unpackable
from tailor.train import loop
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.plans import make_plan
from tests.helpers.recurrent_families import RECURRENT_FAMILIES
from tests.helpers.stores import make_store
from tests.helpers.strategies import curves, under

LENGTHS = [int(10 + (37 * i) % 50) for i in range(40)]
IN_CI = "lfm2"
TYPES = [
    pytest.param(
        family.model_type, marks=() if family.model_type == IN_CI else (pytest.mark.soak, pytest.mark.slow)
    )
    for family in RECURRENT_FAMILIES
    if unpackable({"model_type": family.model_type}) is None
]


def _with_control(host: PlainHost, plan: Plan) -> tuple[dict[str, list[float]], str]:
    """The curve, and the error of a sharded model whose recurrent layers know no documents."""
    curve = curves(host, {"fsdp": plan})["fsdp"]
    with mock.patch.object(sharded_load, "recurrence", SimpleNamespace(isolate=lambda _: True)):
        return curve, _refusal(host, plan)


def _refusal(host: PlainHost, plan: Plan) -> str:
    with pytest.raises(ModelError) as error:
        loop.run(plan, host)
    return str(error.value)


@pytest.mark.parametrize("name", TYPES)
def test_fsdp_trains_as_one_process(tmp_path: Path, name: str) -> None:
    """With a control: without the isolation of documents, the check of the sharded model refuses to train."""
    model = FAMILIES[name].make(tmp_path / "model")
    tokens = make_store(tmp_path / "tokens", LENGTHS)

    def plan(run: str, **scale: Any) -> Plan:
        return make_plan(model, tokens, tmp_path / run, scale=scale, train={"steps": 3})

    expected = curves(PlainHost(), {"ddp": plan("ddp")})["ddp"]
    found, leaking = run_distributed(_with_control, plan("fsdp", **under("fsdp")), world=2)[0]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert "affect each other under fsdp" in leaking


def test_zero_3_refuses_packed_documents(tmp_path: Path) -> None:
    model = FAMILIES[IN_CI].make(tmp_path / "model")
    plan = make_plan(model, make_store(tmp_path / "tokens", LENGTHS), tmp_path / "run", scale=under("zero-3"))
    (first, second) = run_distributed(_refusal, plan, world=2)
    assert first == second
    assert "DeepSpeed's stage 3" in first
