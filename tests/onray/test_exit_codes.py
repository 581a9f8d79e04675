"""A command that followed a job returns the exit code of the job."""

from __future__ import annotations

import pytest

from tailor.errors import TrainingError
from tailor.onray.jobs import Job, exit_code


def job(state: str, code: int | None, message: str = "") -> Job:
    return Job("my-4f1c2a", state, 1.0, 2.0, "s3://bucket/runs/my", code, message)


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [("finished", 0, 0), ("failed", 2, 2), ("failed", 3, 3), ("failed", -9, 137), ("stopped", None, 143)],
)
def test_exit_code_of_the_job(state: str, code: int | None, expected: int) -> None:
    assert exit_code(job(state, code)) == expected


def test_a_failed_job_without_an_exit_code_reports_the_reason() -> None:
    lost = "Job supervisor actor died:\n The actor's node has terminated"
    with pytest.raises(TrainingError) as caught:
        exit_code(job("failed", None, lost))
    assert (
        "failed before its command ended: Job supervisor actor died: The actor's node has terminated"
        in str(caught.value)
    )
    assert "submit it again to resume" in str(caught.value)
