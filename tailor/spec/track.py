"""`track`: where the curves can be watched, beside the run's own log."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section


class Wandb(Section):
    """Weights & Biases. `WANDB_API_KEY` stands in the environment; `WANDB_MODE=offline` writes files for `wandb sync`."""

    project: str = Field(min_length=1)
    """The project of W&B."""

    entity: str | None = Field(None, min_length=1)
    """The team or user. Default: that of the key."""

    name: str | None = Field(None, min_length=1)
    """The run's name there. Default: that of its folder."""


class Mlflow(Section):
    """MLflow. Credentials (`MLFLOW_TRACKING_TOKEN` and others) stand in the environment."""

    experiment: str = Field(min_length=1)
    """The experiment, which is made when there is none."""

    tracking_uri: str | None = Field(None, min_length=1)
    """The tracking server. Default: `MLFLOW_TRACKING_URI`."""

    name: str | None = Field(None, min_length=1)
    """The run's name there. Default: that of its folder."""


class Track(Section):
    """Where the curves can be watched. The run's own `metrics.jsonl` and `report.html` are always written."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""

    wandb: Wandb | None = None
    """Send the curves to Weights & Biases too. Needs the extra `wandb`."""

    mlflow: Mlflow | None = None
    """Send the curves to MLflow too. Needs the extra `mlflow`."""
