"""Submits recipes as Ray jobs to a cluster's job server, follows their logs, and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tailor.errors import ScaleError, StoreError, TrainingError
from tailor.layout import RECIPE
from tailor.onray.authentication import enable_token, refused
from tailor.onray.cluster import check_port
from tailor.spec import visibility
from tailor.store import Store
from tailor.store.scratch import scratch

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

STOP_SECONDS = 600
"""How long a stopped job may take to save its checkpoint. Ray's default is to kill it after 3 s."""

START_SECONDS = 30.0
"""How long to retry submission: a new cluster accepts jobs only some time after its job server answers."""

LOST_SECONDS = 60.0
"""How long to retry when the connection to the cluster is lost."""

ENTRYPOINT = f"tailor run {RECIPE}"
RUN = "tailor.run"
"""Key of the run folder in a job's metadata."""

RAY_INFO = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s+INFO \w+\.py:\d+ -- .*\n", re.MULTILINE)
"""The lines that Ray's job server writes into a job's log while it prepares the job."""

STATES = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
STOPPED_CODE = 143  # 128 + SIGTERM, because Ray does not keep the exit code of a job that it stopped


@dataclass(frozen=True)
class Job:
    """State of a submitted Ray job."""

    name: str
    """Ray's submission ID."""
    state: str
    """One of `STATES`' values."""
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    run: str
    """The run's folder, or the command of a job that was submitted without tailor."""
    code: int | None
    """Exit code of its command; None while it runs, and when Ray or a lost node ended it."""
    message: str
    """Ray's message about the state."""

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "failed", "stopped")


def require_lasting(recipe: Recipe) -> None:
    """StoreError if a folder is inside the working directory of a Ray job, which Ray removes after the job."""
    for key, name in (("save.to", recipe.save.to), ("data.store", recipe.data.store)):
        url = Store(name).url if name is not None else ""
        if any(part.startswith("_ray_pkg_") for part in url.split("/")):
            raise StoreError(
                f"{key} is inside the job's working directory ({url}), which Ray removes after the job",
                hint=f"set {key} to s3://… or to the absolute path of a folder that all nodes of the cluster share",
            )


class Jobs:
    """Client of a cluster's job server. ScaleError when it cannot be reached or rejects the token."""

    def __init__(self, address: str | None = None) -> None:
        self.address = _url(address)
        self._client = _connect(self.address)

    def submit(self, recipe: Recipe, view: visibility.Visibility, name: str) -> str:
        """Submit a recipe and return the name of the job. The nodes must be able to read all files that it names."""
        job = f"{name}-{secrets.token_hex(3)}"
        with scratch() as folder, _translated_errors(self.address):
            for file, text in visibility.bundle(recipe, view, ".").items():
                (Path(folder) / file).write_text(text, encoding="utf-8")
            self._send(
                entrypoint=ENTRYPOINT,
                submission_id=job,
                # The dashboard shows the runtime environment, so it contains no secrets: nodes have their own.
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                },
                metadata={RUN: recipe.save.to},
            )
        return job

    def _send(self, **job: Any) -> None:
        """Submit a job; retry while the cluster starts."""
        began = time.monotonic()
        while True:
            try:
                self._client.submit_job(**job)
                return
            except RuntimeError as error:  # Ray asks to "try again later" while the cluster starts
                if "try again later" not in str(error) or time.monotonic() - began > START_SECONDS:
                    raise
            time.sleep(1.0)

    def all(self) -> list[Job]:
        """All submitted jobs of the cluster, oldest first."""
        with _translated_errors(self.address):
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0.0)

    def job(self, name: str) -> Job:
        """The job with this name. ScaleError when there is none."""
        with _translated_errors(self.address, name):
            return _job(self._client.get_job_info(name))

    def follow(self, name: str, show: Callable[[str], None], *, after: int = 0) -> int:
        """Show the job's log, starting at character `after`, until the job has ended. Returns its exit code.

        TrainingError when the job failed without an exit code, ScaleError when the connection is lost for
        `LOST_SECONDS`.
        """
        last_answer = time.monotonic()
        while True:
            try:
                after = asyncio.run(self._tail(name, show, after))
                job = self.job(name)
                if job.is_over:
                    return exit_code(job)
                last_answer = time.monotonic()
            except (_ConnectionLost, UnreachableError) as error:
                after = error.shown if isinstance(error, _ConnectionLost) else after
                if time.monotonic() - last_answer > LOST_SECONDS:
                    raise ScaleError(
                        f"lost the connection to {self.address}: {error}",
                        hint=f"the job may still be running; follow it again with `tailor jobs logs {name}`",
                    ) from error
            time.sleep(1.0)

    def stop(self, name: str, show: Callable[[str], None]) -> Job:
        """Stop the job after it has saved a checkpoint, and show its log until then."""
        job = self.job(name)
        if job.is_over:
            return job
        with _translated_errors(self.address, name):
            shown = len(self._client.get_job_logs(name))
            self._client.stop_job(name)
        self.follow(name, show, after=shown)
        return self.job(name)

    async def _tail(self, name: str, show: Callable[[str], None], after: int) -> int:
        """Show the log after character `after` until the job ends. Returns the number of characters shown in all."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(name):
                new = RAY_INFO.sub("", text[max(0, after - position) :])
                position += len(text)
                if new:
                    show(new)
        except BrokenPipeError:  # from `show`: the reader of our output is gone, the connection is not lost
            raise
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            with suppress(UnreachableError):
                self.job(name)  # raises a precise error for an unknown job or a wrong token
            raise _ConnectionLost(str(error) or type(error).__name__, max(after, position)) from error
        return max(after, position)


class UnreachableError(ScaleError):
    """No server answers at the job server's address."""


class _ConnectionLost(Exception):
    """The connection to the log is lost. shown: number of its characters that were shown."""

    def __init__(self, text: str, shown: int) -> None:
        super().__init__(text)
        self.shown = shown


def _job(details: Any) -> Job:
    return Job(
        name=details.submission_id,
        state=STATES[str(details.status)],
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        run=(details.metadata or {}).get(RUN) or details.entrypoint,
        code=details.driver_exit_code,
        message=details.message or "",
    )


def exit_code(job: Job) -> int:
    """Exit code for a command that followed the job. TrainingError when the job failed without an exit code."""
    if job.state == "stopped":
        return STOPPED_CODE
    if job.code is None and job.state == "failed":
        raise TrainingError(
            f"job {job.name} failed before its command ended: {' '.join(job.message.split())[:500]}",
            hint="see the logs of its processes in Ray's dashboard; submit it again to resume from the last checkpoint",
        )
    code = job.code or 0
    return (
        code if code >= 0 else 128 - code
    )  # a negative code is the number of the signal that killed the command


def _url(address: str | None) -> str:
    """URL of the dashboard, found in the same way as by `ray job`."""
    named = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (named if "http" in named else "")
    address = (address or DEFAULT_ADDRESS).rstrip("/")
    return address if "://" in address else f"http://{address}"


def _connect(address: str) -> Any:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScaleError(
            f"{address} is not the address of a job server",
            hint="use the address of Ray's dashboard, such as http://HOST:8265",
        )
    enable_token()
    with _translated_errors(address):
        check_port(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        try:
            import aiohttp  # noqa: F401
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ScaleError(
                f"Ray's job client is not installed: {error}", hint="run `pip install 'tailor[jobs]'`"
            ) from error
        # After the import, because Ray configures its loggers there. They log every package and connection.
        for module in (
            "dashboard.modules.dashboard_sdk",
            "dashboard.modules.job.sdk",
            "_private.runtime_env",
        ):
            logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
        return JobSubmissionClient(address)


@contextmanager
def _translated_errors(address: str, name: str = "") -> Iterator[None]:
    """Turn errors of a request to the job server into ScaleErrors with a hint. name: the requested job, if any."""
    try:
        yield
    except ScaleError:
        raise
    except Exception as error:
        kind = type(error).__name__
        first = (str(error) or kind).splitlines()[0]
        if kind == "AuthenticationError":
            raise refused(f"the job server at {address}", first) from error
        if "status code 404" in first and name:
            raise ScaleError(
                f"{address} has no job {name}", hint="list the jobs with `tailor jobs list`"
            ) from error
        if isinstance(error, RuntimeError):
            raise ScaleError(
                f"the job server at {address} reports an error: {first}",
                hint="check the cluster in its dashboard, or run `ray status` on the head node",
            ) from error
        if isinstance(error, OSError):  # the errors of the `requests` library are OSErrors too
            raise UnreachableError(
                f"cannot connect to the Ray job server at {address}: {first}",
                hint="set the dashboard's address with --address, such as http://HOST:8265; the head node needs "
                "ray[default] for the dashboard",
            ) from error
        raise
