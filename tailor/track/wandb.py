"""The Weights & Biases tracker. The API key comes from the environment or `wandb login`; WANDB_MODE=offline needs none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.store import cache_folder
from tailor.track.figures import curves
from tailor.track.identity import identity, name_of, settings

if TYPE_CHECKING:
    from tailor.spec.trackers import Wandb
    from tailor.store import Store


class WeightsAndBiases:
    """Logs metrics named `train/loss`, `evaluation/loss` … by `step`, in one W&B run across all resumes.

    W&B keeps its local files in the run's folder, or in this machine's cache if the run's folder is remote.
    """

    def __init__(self, section: Wandb, run: Store, *, after_step: int, warn: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise StoreError(
                "track.wandb needs the package wandb", hint="pip install 'tailor[wandb]'"
            ) from error
        folder = run.local_path() if run.is_local else cache_folder()
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                name=section.name or name_of(run),
                id=identity(run, "wandb", after_step),
                resume="allow",
                dir=str(folder),
                config=settings(run),
                # Console output is already in the run's own log; code and git remote are private.
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
        except (wandb.errors.Error, OSError) as error:
            raise StoreError(
                f"track.wandb: {' '.join(str(error).split())[:300]}",
                hint="set WANDB_API_KEY, or set WANDB_MODE=offline and run `wandb sync` later",
            ) from error
        # W&B's default step counter rejects steps below its last one, but steps are counted from the resumed checkpoint.
        self._run.define_metric("*", step_metric="step")
        self._step = after_step
        self._wandb = wandb

    def write(self, record: dict[str, Any]) -> None:
        self._step = int(record.get("step", self._step))
        metrics = {f"{kind}/{key}": value for kind, key, value in curves(record) if math.isfinite(value)}
        if metrics:
            self._run.log({"step": self._step, **metrics})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
        if self._run.offline:
            self._wandb.teardown()  # waits for its process, which may still write when the worker's machine is shut down
