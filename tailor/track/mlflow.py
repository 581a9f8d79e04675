"""MLflow. Where and with which credentials is said by the environment: MLFLOW_TRACKING_URI and its companions."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.store import Periodic
from tailor.track.figures import curves
from tailor.track.identity import identity, name_of, settings

if TYPE_CHECKING:
    from tailor.spec.trackers import Mlflow
    from tailor.store import Store

SEND_SECONDS = 5.0
AT_ONCE = 1000
"""Most figures in a request, by MLflow's rules."""
PARAMETERS = 100
"""The same of settings."""
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is away keeps nobody waiting for the quarter of an hour that is MLflow's default."""


class MlflowTracker:
    """Figures named `train/loss`, `evaluation/loss` … by step, in one run of MLflow however often it was stopped.

    They are sent from a thread. Those that a server did not take are sent again; a run does not end for them.
    """

    def __init__(self, section: Mlflow, run: Store, *, after_step: int, tell: Callable[[str], None]) -> None:
        self._tell = tell
        for name, value in PATIENT.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise StoreError(
                "track.mlflow needs the package mlflow-skinny or mlflow", hint="pip install 'tailor[mlflow]'"
            ) from error
        self._metric, self._errors = Metric, (MlflowException, OSError)
        self._waiting: list[Any] = []
        self._mutex = threading.Lock()
        self._step = after_step
        try:
            self._client = client = MlflowClient(tracking_uri=section.tracking_uri)

            def make() -> str:
                found = client.get_experiment_by_name(section.experiment)
                experiment = found.experiment_id if found else client.create_experiment(section.experiment)
                made = client.create_run(experiment, run_name=section.name or name_of(run))
                params = [Param(key, str(value)[:500]) for key, value in settings(run).items()]
                for at in range(0, len(params), PARAMETERS):
                    client.log_batch(made.info.run_id, params=params[at : at + PARAMETERS])
                return str(made.info.run_id)

            self._id = identity(run, "mlflow", after_step, make)
            client.update_run(self._id, status="RUNNING")
        except self._errors as error:
            raise StoreError(
                f"track.mlflow: {' '.join(str(error).split())[:300]}",
                hint="look at MLFLOW_TRACKING_URI (or track.mlflow.tracking_uri) and the server's credentials",
            ) from error
        self._periodic = Periodic(self._send, SEND_SECONDS)

    def write(self, record: dict[str, Any]) -> None:
        self._step = int(record.get("step", self._step))
        now = int(record.get("time", time.time()) * 1000)
        found = [
            self._metric(f"{kind}/{key}", float(value), now, self._step)
            for kind, key, value in curves(record)
            if math.isfinite(value)
        ]
        with self._mutex:
            self._waiting += found

    def close(self, *, finished: bool) -> None:
        self._periodic.close()
        try:
            self._send()
            self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
        except (StoreError, *self._errors) as error:
            self._tell(f"MLflow does not have the whole run: {error}")

    def _send(self) -> None:
        """StoreError when the server takes none; then they stay."""
        with self._mutex:
            some = self._waiting[:AT_ONCE]
        while some:
            try:
                self._client.log_batch(self._id, metrics=some)
            except self._errors as error:
                what = " ".join(str(error).split())[:200]
                raise StoreError(f"{len(self._waiting)} figures were not taken: {what}") from error
            with self._mutex:
                del self._waiting[: len(some)]
                some = self._waiting[:AT_ONCE]
