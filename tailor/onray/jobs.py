"""Jobs on a Ray cluster: a recipe is sent to the cluster's job server, followed, and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tailor.errors import ScaleError, StoreError, TrainingError
from tailor.layout import RECIPE
from tailor.onray.cluster import knock
from tailor.spec import visibility
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

STOP_SECONDS = 600
"""How long a job may take to save when it is stopped. Ray kills it after 3 s unless it is told otherwise."""

START_SECONDS = 30.0
"""A cluster takes jobs a while after its job server answers."""

LOST_SECONDS = 60.0
"""A cluster that answers no more is asked again for so long."""

ENTRYPOINT = f"tailor run {RECIPE}"
RUN = "tailor.run"
"""The name under which a job's metadata hold its run's folder."""

STATES = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
STOPPED_CODE = 143  # 128 + SIGTERM: Ray keeps no exit code of a job that it stopped


@dataclass(frozen=True)
class Job:
    """How a job stands."""

    name: str
    state: str
    """One of `STATES`' values."""
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    run: str
    """The run's folder, or the command of a job that was submitted without tailor."""
    code: int | None
    """The exit code of its command, when that has ended by itself."""
    message: str

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "failed", "stopped")


def require_lasting(recipe: Recipe) -> None:
    """StoreError for a folder in a job's unpacked working directory: Ray removes that with the job."""
    for key, name in (("save.to", recipe.save.to), ("data.store", recipe.data.store)):
        url = Store(name).url if name is not None else ""
        if any(part.startswith("_ray_pkg_") for part in url.split("/")):
            raise StoreError(
                f"{key} lies in the job's working directory ({url}), which Ray removes after the job",
                hint=f"set {key} to s3://… or to an absolute folder that every machine of the cluster sees",
            )


class Jobs:
    """The job server of a cluster. ScaleError when it cannot be reached, or wants another token."""

    def __init__(self, address: str | None = None) -> None:
        self.address = _url(address)
        self._client = _connect(self.address)

    def submit(self, recipe: Recipe, view: visibility.Visibility, name: str) -> str:
        """Send a recipe whose names the cluster's machines see; gives the job's name."""
        job = f"{name}-{secrets.token_hex(3)}"
        with tempfile.TemporaryDirectory() as folder, _asking(self.address):
            for file, text in visibility.bundle(recipe, view, ".").items():
                (Path(folder) / file).write_text(text, encoding="utf-8")
            self._send(
                entrypoint=ENTRYPOINT,
                submission_id=job,
                # Whoever sees the dashboard sees this. Secrets are the environment's of the cluster.
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                },
                metadata={RUN: recipe.save.to},
            )
        return job

    def _send(self, **job: Any) -> None:
        began = time.monotonic()
        while True:
            try:
                self._client.submit_job(**job)
                return
            except RuntimeError as error:  # a cluster that has just been started
                if "try again later" not in str(error) or time.monotonic() - began > START_SECONDS:
                    raise
            time.sleep(1.0)

    def all(self) -> list[Job]:
        """The jobs that the cluster knows, the oldest first."""
        with _asking(self.address):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0)

    def job(self, name: str) -> Job:
        with _asking(self.address, name):
            return _job(self._client.get_job_info(name))

    def follow(self, name: str, show: Callable[[str], None], *, after: int = 0) -> int:
        """Show the job's log, from the character `after` on, until the job has ended; gives its exit code.

        TrainingError when the job failed without its command having ended, ScaleError when the cluster is lost.
        """
        heard = time.monotonic()
        while True:
            try:
                after = asyncio.run(self._tail(name, show, after))
                job = self.job(name)
                if job.is_over:
                    return exit_code(job)
                heard = time.monotonic()
            except (_Lost, UnreachableError) as error:
                after = error.shown if isinstance(error, _Lost) else after
                if time.monotonic() - heard > LOST_SECONDS:
                    raise ScaleError(
                        f"{self.address} answers no more: {error}",
                        hint=f"the job may go on; `tailor jobs logs {name}` follows it again",
                    ) from error
            time.sleep(1.0)

    def stop(self, name: str, show: Callable[[str], None]) -> Job:
        """Ask the job to save a checkpoint and end, and show what it says until it has."""
        job = self.job(name)
        if job.is_over:
            return job
        with _asking(self.address, name):
            said = len(self._client.get_job_logs(name))
            self._client.stop_job(name)
        self.follow(name, show, after=said)
        return self.job(name)

    async def _tail(self, name: str, show: Callable[[str], None], after: int) -> int:
        """The log has no end before the job has; gives how many of its characters were shown."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(name):
                new = text[max(0, after - position) :]
                position += len(text)
                if new:
                    show(new)
        except BrokenPipeError:  # nobody reads what is shown
            raise
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            with suppress(UnreachableError):
                self.job(name)  # a name that is not there, a token that is wrong: told as such
            raise _Lost(str(error) or type(error).__name__, max(after, position)) from error
        return max(after, position)


class UnreachableError(ScaleError):
    """Nothing answers where the job server was said to be."""


class _Lost(Exception):
    """The connection to the log is gone. shown: characters of it that were shown."""

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
    """What a command that follows the job ends with. TrainingError when there is nothing to say it."""
    if job.state == "stopped":
        return STOPPED_CODE
    if job.code is None and job.state == "failed":
        raise TrainingError(
            f"job {job.name} failed, and its command did not end by itself: {' '.join(job.message.split())[:500]}",
            hint="the dashboard has the logs of its processes; submit it again to go on from the last checkpoint",
        )
    code = job.code or 0
    return code if code >= 0 else 128 - code  # killed by a signal


def _url(address: str | None) -> str:
    """The address of the dashboard, as Ray's own commands find it."""
    named = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (named if "http" in named else "")
    address = (address or DEFAULT_ADDRESS).rstrip("/")
    return address if "://" in address else f"http://{address}"


def _connect(address: str) -> Any:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScaleError(
            f"{address} is no address of a job server",
            hint="name the dashboard's, such as http://HOST:8265",
        )
    _take_token()
    with _asking(address):
        knock(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        try:
            import aiohttp  # noqa: F401
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ScaleError(
                f"jobs need Ray's job client: {error}", hint="pip install 'tailor[jobs]'"
            ) from error
        for module in ("dashboard_sdk", "job.sdk"):  # they tell of every package and connection
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
        return JobSubmissionClient(address)


def _take_token() -> None:
    """Use the token that is there, as `ray start` and `ray.init` do. Ray's job client waits to be told."""
    there = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if there or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def _asking(address: str, name: str = "") -> Iterator[None]:
    """What goes wrong between here and the job server, in words with a hint. name: of the job that is asked for."""
    try:
        yield
    except ScaleError:
        raise
    except Exception as error:
        kind = type(error).__name__
        first = (str(error) or kind).splitlines()[0]
        if kind == "AuthenticationError":
            raise ScaleError(
                f"{address} refuses the request: {first.rstrip('.')}",
                hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token "
                "(`ray get-auth-token` on its head)",
            ) from error
        if "status code 404" in first and name:
            raise ScaleError(
                f"{address} has no job {name}", hint="`tailor jobs list` names its jobs"
            ) from error
        if isinstance(error, RuntimeError):
            raise ScaleError(
                f"the job server at {address} cannot do that: {first}",
                hint="look at the cluster: its dashboard, `ray status` on its head",
            ) from error
        if isinstance(error, OSError):  # those of requests are too
            raise UnreachableError(
                f"no Ray job server answers at {address}: {first}",
                hint="name the dashboard's address with --address, such as http://HOST:8265; "
                "`ray start --head` needs ray[default] to have one",
            ) from error
        raise
