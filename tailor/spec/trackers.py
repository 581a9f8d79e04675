"""The sections of single trackers, below `track`. One of another package derives from `TrackerSection` as these do."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tailor.spec.base import Section


class TrackerSection(Section):
    """The keys of one tracker. One without keys is switched on and off: `track.NAME: true`."""

    implementation: ClassVar[str]
    """`module:attribute` of what opens the tracker (`tailor.track.base.Opener`), imported by the worker that writes."""
    help: ClassVar[str]
    """Of the key `track.NAME`, for the reference and the JSON schema."""
    on_by_default: ClassVar[bool] = False
    """Of a tracker without keys."""
    environment_prefix: ClassVar[str | None] = None
    """Of the environment variables that it needs, which a cluster file then has to set."""


class TensorBoard(TrackerSection):
    """TensorBoard event files."""

    implementation: ClassVar[str] = "tailor.track.tensorboard:TensorBoard"
    help: ClassVar[str] = "Write TensorBoard event files into the run's folder."
    on_by_default: ClassVar[bool] = True


class Wandb(TrackerSection):
    """Weights & Biases. `WANDB_API_KEY` stands in the environment; `WANDB_MODE=offline` writes files for `wandb sync`."""

    implementation: ClassVar[str] = "tailor.track.wandb:WeightsAndBiases"
    help: ClassVar[str] = "Send the curves to Weights & Biases too. Needs the extra `wandb`."
    environment_prefix: ClassVar[str | None] = "WANDB_"

    project: str = Field(min_length=1)
    """The project of W&B."""

    entity: str | None = Field(None, min_length=1)
    """The team or user. Default: that of the key."""

    name: str | None = Field(None, min_length=1)
    """The run's name there. Default: that of its folder."""


class Mlflow(TrackerSection):
    """MLflow. Credentials (`MLFLOW_TRACKING_TOKEN` and others) stand in the environment."""

    implementation: ClassVar[str] = "tailor.track.mlflow:MlflowTracker"
    help: ClassVar[str] = "Send the curves to MLflow too. Needs the extra `mlflow`."
    environment_prefix: ClassVar[str | None] = "MLFLOW_"

    experiment: str = Field(min_length=1)
    """The experiment, which is made when there is none."""

    tracking_uri: str | None = Field(None, min_length=1)
    """The tracking server. Default: `MLFLOW_TRACKING_URI`."""

    name: str | None = Field(None, min_length=1)
    """The run's name there. Default: that of its folder."""
