"""Settings of a server of runs: its limits, and the environment variable with its key."""

from __future__ import annotations

from dataclasses import dataclass

KEY_VARIABLE = "TAILOR_API_KEY"


@dataclass(frozen=True)
class Limits:
    """Limits of each request. The defaults are those of `tailor serve`.

    body_bytes, body_seconds: of the request. seconds: from the request to the end of its response. max_tokens: of an answer.
    waiting: requests that may wait for a row of a batch.
    """

    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    seconds: float = 600.0
    max_tokens: int = 4096
    waiting: int = 256
