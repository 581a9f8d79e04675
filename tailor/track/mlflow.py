"""The MLflow tracker. Server and credentials come from environment variables such as MLFLOW_TRACKING_URI."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.store import Periodic
from tailor.track.figures import curves, with_letters
from tailor.track.identity import identity, name_of, settings

if TYPE_CHECKING:
    from tailor.spec.trackers import Mlflow
    from tailor.store import Store

SEND_SECONDS = 5.0
MAX_METRICS = 1000
"""MLflow's limit of metrics per request."""
MAX_PARAMS = 100
"""MLflow's limit of parameters per request."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Error codes of a request that will never be accepted."""
HTTP_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Fewer and shorter retries: with MLflow's defaults a request to an unreachable server takes 15 minutes to fail."""


class MlflowTracker:
    """Logs metrics named `train/loss`, `evaluation/loss` … by step, in one MLflow run across all resumes.

    The server gets each step once, also when a run resumes. A background thread sends them. If the server is unreachable,
    they are sent later, and training continues. Metrics that the server refuses are left out, and named at the end.
    MLflow has no `@` in names: `retrieval/recall@1` is `retrieval/recall_at_1` there.
    """

    def __init__(self, section: Mlflow, run: Store, *, after_step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        for name, value in HTTP_DEFAULTS.items():
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
        self._refusal = MlflowException
        self._refused: dict[str, str] = {}
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
                for start in range(0, len(params), MAX_PARAMS):
                    client.log_batch(made.info.run_id, params=params[start : start + MAX_PARAMS])
                return str(made.info.run_id)

            self._id = identity(run, "mlflow", after_step, make)
            client.update_run(self._id, status="RUNNING")
            # MLflow cannot remove points. Steps that are trained again are sent only if the server lacks them. Unlike
            # `RunData.metrics`, these newest points have steps.
            newest = client.get_run(self._id).data.to_proto().metrics
            self._reached = {metric.key: int(metric.step) for metric in newest}
        except self._errors as error:
            raise StoreError(
                f"track.mlflow: {' '.join(str(error).split())[:300]}",
                hint="check MLFLOW_TRACKING_URI (or track.mlflow.tracking_uri) and the server's credentials",
            ) from error
        self._periodic = Periodic(self._send, SEND_SECONDS)

    def write(self, record: dict[str, Any]) -> None:
        self._step = int(record.get("step", self._step))
        now = int(record.get("time", time.time()) * 1000)
        named = [(with_letters(f"{kind}/{key}"), value) for kind, key, value in curves(record)]
        metrics = [
            self._metric(name, float(value), now, self._step)
            for name, value in named
            if math.isfinite(value) and self._step > self._reached.get(name, -1)
        ]
        with self._mutex:
            self._waiting += metrics

    def close(self, *, finished: bool) -> None:
        self._periodic.close()
        for what, act in (
            ("has not received all metrics of the run", self._send),
            ("does not know that the run ended", lambda: self._end(finished)),
        ):
            try:
                act()
            except (StoreError, *self._errors) as error:
                self._warn(f"MLflow {what}: {' '.join(str(error).split())[:300]}")
        for name, why in self._refused.items():
            self._warn(f"MLflow refused the metric {name}: {why}")

    def _end(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _send(self) -> None:
        """Send all waiting metrics. StoreError when the server cannot be reached; the metrics then stay for the next try."""
        with self._mutex:
            batch = self._waiting[:MAX_METRICS]
        while batch:
            try:
                self._log(batch)
            except self._errors as error:
                what = " ".join(str(error).split())[:200]
                raise StoreError(f"{len(self._waiting)} metrics could not be sent: {what}") from error
            with self._mutex:
                del self._waiting[: len(batch)]
                batch = self._waiting[:MAX_METRICS]

    def _log(self, batch: list[Any]) -> None:
        """Send metrics. Where MLflow refuses the request itself, each metric's curve is sent alone, without the refused ones."""
        try:
            self._client.log_batch(self._id, metrics=[one for one in batch if one.key not in self._refused])
            return
        except self._refusal as error:
            if error.error_code not in REFUSALS:
                raise
        for key in dict.fromkeys(one.key for one in batch if one.key not in self._refused):
            try:
                self._client.log_batch(self._id, metrics=[one for one in batch if one.key == key])
            except self._refusal as error:
                if error.error_code not in REFUSALS:
                    raise
                self._refused[key] = " ".join(str(error).split())[:200]
