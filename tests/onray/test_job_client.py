"""The client of a job server keeps Ray's log lines out of the terminal."""

from __future__ import annotations

import logging

import pytest

from tailor.onray import jobs


def test_packaging_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.job_submission

    loggers = [
        "ray._private.runtime_env.packaging",
        "ray._private.runtime_env.working_dir",
        "ray.dashboard.modules.dashboard_sdk",
        "ray.dashboard.modules.job.sdk",
    ]
    for name in ("ray._private.runtime_env", *loggers):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    monkeypatch.setattr(logging.getLogger("ray"), "level", logging.INFO)  # as Ray sets it
    for name in loggers:
        logging.getLogger(name).manager._clear_cache()
    assert all(logging.getLogger(name).isEnabledFor(logging.INFO) for name in loggers), "the control"
    monkeypatch.setattr(jobs, "check_port", lambda *_: None)
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda address: address)
    jobs._connect("http://127.0.0.1:8265")
    assert not any(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in loggers)


def test_lines_of_the_job_server_are_left_out() -> None:
    log = "2026-11-29 17:29:12,467\tINFO job_manager.py:581 -- Runtime env is setting up.\nstep 1/12  loss 5.9605\n"
    assert jobs.RAY_INFO.sub("", log) == "step 1/12  loss 5.9605\n"
    other = "2026-11-29 17:29:12,467\tWARNING job_manager.py:581 -- no room\nINFO mine.py:1 -- kept\n"
    assert jobs.RAY_INFO.sub("", other) == other
