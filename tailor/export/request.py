"""An export request, and the selected run and weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tailor.artifacts.merge import Settings
from tailor.models.own_code import NOTHING, Trust
from tailor.store import Store

Weights = Literal["adapter", "merged", "model"]


@dataclass(frozen=True)
class Request:
    """What to export of a run."""

    form: str = "huggingface"
    """A name of `tailor.export.forms.EXPORT_FORMS`."""
    weights: Weights | None = None
    """None: the default of the form."""
    base: str | None = None
    """The new path of a base that has moved."""
    base_id: str | None = None
    """The base's id on the hub, written into the model card and the adapter's configuration."""
    merging: Settings = field(default_factory=Settings)
    name: str | None = None
    """The model's name in the card; by default the name of the run."""
    trust: Trust = NOTHING
    """The base's own code that may run."""
    query_instruction: str | None = None
    """The instruction for queries, for a form that stores prompts."""

    @property
    def form_options(self) -> list[str]:
        """The form-specific options (`ExportForm.options`) that were given."""
        return ["query_instruction"] if self.query_instruction is not None else []


@dataclass(frozen=True)
class Selection:
    """A run, and which of its weights are exported."""

    run: Store
    weights: Weights
    request: Request

    @property
    def artifact(self) -> Store:
        """The folder of the run's trained weights: `model/`, or `adapter/` (also for merged weights)."""
        return self.run.join("model" if self.weights == "model" else "adapter")
