"""The sections of the trackers, in `track`. Another package adds a tracker with a subclass of `TrackerSection`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tailor.spec.base import Section


class TrackerSection(Section):
    """Base of the trackers' sections. A tracker without keys is turned on and off with `track.NAME: true` or `false`."""

    implementation: ClassVar[str]
    """`module:attribute` of the function that opens the tracker (`tailor.track.base.Opener`). The worker that writes
    imports it.
    """
    help: ClassVar[str]
    """Help text of the key `track.NAME`, for the reference and the JSON schema."""
    on_by_default: ClassVar[bool] = False
    """Whether a tracker without keys is on by default."""
    environment_prefix: ClassVar[str | None] = None
    """Prefix of the environment variables that it needs. A cluster file then has to set them."""
    rewinds: ClassVar[bool] = True
    """Whether a resumed run's tracker handles steps that were sent before the run was interrupted, for example by removing
    them. Otherwise it does not get their records again.
    """


class TensorBoard(TrackerSection):
    """TensorBoard event files."""

    implementation: ClassVar[str] = "tailor.track.tensorboard:TensorBoard"
    help: ClassVar[str] = "Write TensorBoard event files into the run's folder (`tensorboard/`)."
    on_by_default: ClassVar[bool] = True


class Wandb(TrackerSection):
    """Weights & Biases.

    Set `WANDB_API_KEY` in the environment. With `WANDB_MODE=offline` it writes files for `wandb sync`.
    """

    implementation: ClassVar[str] = "tailor.track.wandb:WeightsAndBiases"
    help: ClassVar[str] = "Log the metrics to Weights & Biases. Needs the extra `wandb`. Default: off."
    environment_prefix: ClassVar[str | None] = "WANDB_"
    rewinds: ClassVar[bool] = False

    project: str = Field(min_length=1)
    """Name of the W&B project."""

    entity: str | None = Field(None, min_length=1)
    """W&B team or user. Default: the default entity of the API key."""

    name: str | None = Field(None, min_length=1)
    """Name of the run in W&B. Default: the name of the run's folder."""


class Mlflow(TrackerSection):
    """MLflow. Set credentials (`MLFLOW_TRACKING_TOKEN` and others) in the environment."""

    implementation: ClassVar[str] = "tailor.track.mlflow:MlflowTracker"
    help: ClassVar[str] = "Log the metrics to MLflow. Needs the extra `mlflow`. Default: off."
    environment_prefix: ClassVar[str | None] = "MLFLOW_"

    experiment: str = Field(min_length=1)
    """Name of the MLflow experiment. It is created if it does not exist."""

    tracking_uri: str | None = Field(None, min_length=1)
    """URI of the tracking server. Default: `MLFLOW_TRACKING_URI`."""

    name: str | None = Field(None, min_length=1)
    """Name of the run in MLflow. Default: the name of the run's folder."""
