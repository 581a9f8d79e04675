"""An export request, and the selected run and weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tailor.artifacts.inputs import Source, open_source
from tailor.artifacts.merge import Settings
from tailor.layout import MODEL_CONFIG
from tailor.models.own_code import NOTHING, Trust
from tailor.store import OBJECT, Store

Weights = Literal["adapter", "merged", "model"]
FORM_OPTIONS = ("query_instruction", "type", "llama_cpp", "template")
"""Options that only some export forms read (`ExportForm.options`)."""


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
    type: str | None = None
    """The type of a GGUF file: a name of `tailor.export.gguf.types.TYPES`."""
    llama_cpp: str | None = None
    """The folder of a llama.cpp checkout, whose converter makes the GGUF file."""
    template: str | None = None
    """A file with the chat template in Go's syntax, for Ollama."""

    @property
    def form_options(self) -> list[str]:
        """The form-specific options (`ExportForm.options`) that were given."""
        return [name for name in FORM_OPTIONS if getattr(self, name) is not None]


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

    @cached_property
    def source(self) -> Source:
        """The run's adapter with its base. ModelError when the base is missing or another one."""
        return open_source(self.run.url, self.request.base, self.request.trust)

    @property
    def model_folder(self) -> Path:
        """The folder with the weights of the model, or of the adapter's base. ModelError when the base is missing."""
        return self.artifact.local_path() if self.weights == "model" else self.source.base

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the model, or of the adapter's base. ModelError when the base is missing."""
        return OBJECT.read_path(self.model_folder / MODEL_CONFIG)

    @property
    def architecture(self) -> str:
        """The model's class in transformers."""
        return str((self.config.get("architectures") or ["?"])[0])
