"""Trackers: where curves can be watched, beside the run's own log. One file per tracker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tailor.spec.track import Track
    from tailor.store import Store


class Tracker(Protocol):
    """Takes every metric record of rank 0, in order."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self, *, finished: bool) -> None:
        """No record comes any more. finished: the run came to its end, and did not stop before."""
        ...


def open_trackers(
    track: Track, run: Store, *, after_step: int = 0, tell: Callable[[str], None] = print
) -> list[Tracker]:
    """The trackers that a recipe asks for.

    after_step: the step that the run goes on from; tell: takes what the user must know and ends no run.
    """
    trackers: list[Tracker] = []
    if track.tensorboard:
        from tailor.track.tensorboard import TensorBoard

        trackers.append(TensorBoard(run, after_step=after_step))
    if track.wandb is not None:
        from tailor.track.wandb import WeightsAndBiases

        trackers.append(WeightsAndBiases(track.wandb, run, after_step=after_step))
    if track.mlflow is not None:
        from tailor.track.mlflow import MlflowTracker

        trackers.append(MlflowTracker(track.mlflow, run, after_step=after_step, tell=tell))
    return trackers
