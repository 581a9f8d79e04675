"""What a user wants exported, and what of a run that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tailor.artifacts.merge import Settings
from tailor.store import Store

Weights = Literal["adapter", "merged", "model"]


@dataclass(frozen=True)
class Request:
    """What to export of a run."""

    form: str = "huggingface"
    """A name of `tailor.export.forms.EXPORT_FORMS`."""
    weights: Weights | None = None
    """The form's default when None."""
    base: str | None = None
    """Where the base is now, when it has moved."""
    base_id: str | None = None
    """The base's id on the hub, for the card and for those who load the adapter."""
    merging: Settings = field(default_factory=Settings)
    name: str | None = None
    """The model's name in its card; the run's by default."""
    query_instruction: str | None = None
    """The instruction of queries, for a form that stores prompts."""

    @property
    def form_options(self) -> list[str]:
        """The options for single forms (`ExportForm.options`) that were given."""
        return ["query_instruction"] if self.query_instruction is not None else []


@dataclass(frozen=True)
class Selection:
    """A run, and which of its weights are exported."""

    run: Store
    weights: Weights
    request: Request

    @property
    def artifact(self) -> Store:
        """The folder of the run's trained weights: `adapter/`, also when it is merged, or `model/`."""
        return self.run.join("model" if self.weights == "model" else "adapter")
