"""Real Ray workers: the same curve and run folder as in one process, and TailorErrors that pass through."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tailor.errors import ModelError, StoreError, WorkerError
from tailor.models.libraries import import_libraries
from tailor.onray import trainer
from tailor.onray.cluster import Cluster
from tailor.onray.sharing import ray_runner
from tailor.onray.supervisor import DriverContext
from tailor.runs.log import of_kind, read
from tailor.spec.suite import Decoding
from tailor.store import Store, run_folder
from tests.helpers.ports import listening
from tests.onray.conftest import Make

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def fit(plan: Any, recipe: Any, cluster: Cluster | None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    trainer.fit(plan, recipe, DriverContext(records.append), cluster=cluster)
    return records


def curve(run: Path) -> list[float]:
    return [record["loss"] for record in read(Store(str(run))) if "loss" in record]


@pytest.mark.soak
def test_one_worker_equals_this_process(make: Make, cluster: Cluster, tmp_path: Path) -> None:
    fit(*make(tmp_path / "here"), None)
    fit(*make(tmp_path / "there", scale={"workers": 1, "cpus_per_worker": 1}), cluster)
    assert curve(tmp_path / "here") == curve(tmp_path / "there")
    assert Store(str(tmp_path / "here")).names() == Store(str(tmp_path / "there")).names()
    fit(*make(tmp_path / "control", train={"seed": 7}), None)
    assert curve(tmp_path / "here") != curve(tmp_path / "control")


class _EndsItsProcess:
    """A batch that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_dead_worker_of_an_evaluation_is_an_error_with_a_hint(cluster: Cluster) -> None:
    runner = ray_runner(cluster, 1, gpu=False)
    with pytest.raises(WorkerError) as caught:
        list(runner([], Decoding(), [_EndsItsProcess()]))  # type: ignore[list-item]
    assert str(caught.value) == (
        "the process of worker 0 died: it was killed, or the node ran out of memory; "
        "run the same command again; it resumes with the batches that are not done yet"
    )


def test_two_workers_split_the_batch_and_rank_zero_reports_in_order(
    make: Make, cluster: Cluster, tmp_path: Path
) -> None:
    """Every port of Ray's processes, torch's store and gloo is on the loopback interface meanwhile."""
    published: list[dict[str, Any]] = []
    ports: dict[tuple[str, int], bool] = {}
    before = set(psutil.Process().children(recursive=True))
    names: set[str] = set()

    def publish(record: dict[str, Any]) -> None:
        published.append(record)
        if record["kind"] == "train" and not ports:
            processes = psutil.Process().children(recursive=True)
            ports.update(listening({os.getpid(), *(process.pid for process in processes)}))
            names.update(name for process in {*processes} - before for name in process.cmdline()[:1])

    fit(*make(tmp_path / "one"), None)
    two = make(tmp_path / "two", scale={"workers": 2}, save={"every": 2})
    trainer.fit(*two, DriverContext(publish), cluster=cluster)
    assert "ray::RayTrainWorker" in " ".join(names)
    assert "AutoscalingCoordinator" not in " ".join(names), "a local instance has no nodes to request"
    assert len(ports) > 10
    assert [port for port, is_loopback in ports.items() if not is_loopback] == []
    run = Store(str(tmp_path / "two"))
    assert [record for record in published if record["kind"] != "started"] == read(run)
    assert [record["step"] for record in of_kind(published, "train")] == [1, 2, 3, 4, 5, 6]
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), abs=1e-5)
    # Ray Train's files are removed.
    assert run.join("checkpoints").names() == ["step-00000002", "step-00000004", "step-00000006"]


@pytest.mark.soak
def test_a_user_error_in_a_worker_is_raised_unchanged(make: Make, cluster: Cluster, tmp_path: Path) -> None:
    plan, recipe = make(tmp_path, scale={"workers": 2})
    plan = dataclasses.replace(plan, model=plan.model.model_copy(update={"path": str(tmp_path / "nowhere")}))
    with pytest.raises(ModelError) as caught:
        fit(plan, recipe, cluster)
    assert "nowhere" in caught.value.message
    assert caught.value.hint


def test_a_folder_that_workers_cannot_access_is_an_error(make: Make, cluster: Cluster) -> None:
    with pytest.raises(StoreError, match="exists in one process only"):
        fit(*make("memory://somewhere/run", scale={"workers": 2}), cluster)
    assert run_folder.checkpoints(Store("memory://somewhere/run")) == []


def test_a_new_worker_imports_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray finds the function by the name that the worker's process gets. Its errors are left to training, which reports them."""
    from ray._common.utils import load_class

    (name,) = trainer._preloading()["env_vars"].values()
    asked: list[str] = []

    def find_spec(module: str, *_: Any) -> None:
        if module == "bitsandbytes":
            asked.append(module)
            raise ImportError

    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec), *sys.meta_path])
    load_class(name)()
    assert "tailor.train.loop" in sys.modules
    assert not asked, "bitsandbytes asks CUDA for its devices before Ray has chosen them"
    import_libraries()
    assert asked, "the control"
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    load_class(name)()
