"""`model.warm_start`: the weights of another run, with a new optimizer and from step 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.store import Store, run_folder
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

RATE = {"learning_rate": 0.05}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("warm")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", [20, 33, 41, 25] * 9)


@pytest.fixture(scope="module")
def first(made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlainHost]:
    run, host = tmp_path_factory.mktemp("first"), PlainHost()
    loop.run(make_plan(*made, run, model={"adapter": LORA}, optim=RATE, save={"every": 3}), host)
    return run, host


@pytest.mark.parametrize("below", ["", "adapter", "checkpoints/step-00000006"])
def test_it_begins_where_the_other_run_ended(
    made: tuple[Path, Any], first: tuple[Path, PlainHost], tmp_path: Path, below: str
) -> None:
    host = PlainHost()
    model = {"adapter": LORA, "warm_start": str(first[0] / below)}
    loop.run(make_plan(*made, tmp_path / "b", model=model, optim=RATE), host)
    assert [record["step"] for record in host.of("train")] == [1, 2, 3, 4, 5, 6]
    assert host.losses()[0] < min(first[1].losses()[:2]), "the same batch, after six steps"
    expected = first[0] / (below or "adapter")
    assert any(f"starting from the weights of {expected}" in r["message"] for r in host.of("status"))
    again = PlainHost(resume_from=str(tmp_path / "b"))
    loop.run(make_plan(*made, tmp_path / "b", model=model, optim=RATE, train={"steps": 8}), again)
    assert [record["step"] for record in again.of("train")] == [7, 8], "its own checkpoint comes first"


def test_an_unfinished_run_gives_its_last_checkpoint(
    made: tuple[Path, Any], first: tuple[Path, PlainHost], tmp_path: Path
) -> None:
    loop.run(make_plan(*made, tmp_path / "cut", model={"adapter": LORA}, optim=RATE), PlainHost(stop_after=2))
    host = PlainHost()
    model = {"adapter": LORA, "warm_start": str(tmp_path / "cut")}
    loop.run(make_plan(*made, tmp_path / "b", model=model, optim=RATE), host)
    newest = run_folder.latest_checkpoint(Store(str(tmp_path / "cut")))
    assert any(f"starting from the weights of {newest}" in r["message"] for r in host.of("status"))


def test_an_adapter_that_does_not_match_is_rejected(
    made: tuple[Path, Any], first: tuple[Path, PlainHost], tmp_path: Path
) -> None:
    for adapter, expected in (
        ({**LORA, "rank": 8}, r"was trained with model\.adapter\.rank: 4, this recipe has 8"),
        # The same names and shapes, and another model.
        ({**LORA, "alpha": 80}, r"was trained with model\.adapter\.alpha: 8.*, this recipe has 80"),
        (
            {**LORA, "rslora": True},
            r"was trained with model\.adapter\.rslora: False, this recipe has True",
        ),
        ({**LORA, "target_modules": ["q_proj"]}, "does not match this recipe's: "),
        (None, "is an adapter, but this recipe has no model.adapter"),
    ):
        plan = make_plan(*made, tmp_path / "b", model={"adapter": adapter, "warm_start": str(first[0])})
        with pytest.raises(StoreError, match=expected):
            loop.run(plan, PlainHost())


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({**LORA, "rank": 8}, r"was trained with model\.adapter\.rank: 4, this recipe has 8"),
        ({**LORA, "rslora": True}, r"was trained with model\.adapter\.rslora: False, this recipe has True"),
        ({"type": "loha"}, "is an adapter of the type LORA, this recipe has LOHA"),
        ({**LORA, "init": "pissa"}, "replaces the start that model.adapter.init asks for"),
        ({**LORA, "dropout": 0.1}, None),
    ],
)
def test_another_adapter_is_rejected_before_the_model_is_loaded(
    first: tuple[Path, PlainHost], adapter: dict[str, Any], expected: str | None
) -> None:
    from tailor.spec.model import Model
    from tailor.train.warm_start import check

    model = Model.model_validate({"path": "base", "adapter": adapter, "warm_start": str(first[0])})
    if expected is None:
        return check(model)
    with pytest.raises(StoreError, match=expected):
        check(model)
    return None


def test_a_folder_without_trained_weights_is_rejected(made: tuple[Path, Any], tmp_path: Path) -> None:
    from tailor.train.warm_start import find

    with pytest.raises(
        StoreError,
        match="has neither an adapter nor a checkpoint; set it to a run, a checkpoint or an adapter",
    ):
        find(str(made[0]))
    loop.run(make_plan(*made, tmp_path / "full"), PlainHost())
    with pytest.raises(
        StoreError, match=f"trained a full model, not an adapter; set model.path: {tmp_path}/full/model"
    ):
        find(str(tmp_path / "full"))


def test_an_altered_adapter_is_rejected(
    made: tuple[Path, Any], first: tuple[Path, PlainHost], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(first[0] / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    plan = make_plan(*made, tmp_path / "b", model={"adapter": LORA, "warm_start": str(tmp_path / "adapter")})
    with pytest.raises(StoreError, match="was changed: its checksum differs from COMMIT"):
        loop.run(plan, PlainHost())
