"""The interface of an export form: the weights that it takes, its checks, its files, and its part of the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from tailor.export.request import Selection, Weights


@dataclass(frozen=True)
class CardSection:
    """A form's replacement for the model card's default usage section (transformers and PEFT)."""

    use: str
    """Markdown below the heading `## Use`: how to load the folder."""
    metadata: Mapping[str, Any]
    """Keys of the card's YAML, such as `library_name`."""
    tags: Sequence[str] = ()
    """Tags, listed before the others."""


class ExportForm:
    """A layout of the exported folder. By default it has only the weights and the tokenizer.

    Its module is imported only when a command uses the form.
    """

    weights: ClassVar[tuple[Weights, ...]] = ("merged", "model")
    """The weights that it takes, the default first: `adapter` or `merged` for a run that trained an adapter, `model` for full
    fine-tuning. A form that does not take `adapter` always gets a full model."""
    reads_base: ClassVar[bool] = False
    """Whether it reads the base of an adapter that is not merged, so that `--base` has an effect."""
    takes_checkpoints: ClassVar[bool] = False
    """Whether it takes checkpoints. Their weights are never merged, and an unfinished run has no artifact when `check` runs."""
    for_several_engines: ClassVar[bool] = False
    """Whether several inference engines load the folder: those that cannot serve it are reported first."""
    options: ClassVar[tuple[str, ...]] = ()
    """The form-specific options that it reads, of `request.FORM_OPTIONS`."""

    def refusal(self, weights: Weights) -> str:
        """Why it does not take `weights`, for the error message."""
        return f"this export form takes {' or '.join(self.weights)} weights, not {weights}"

    def check(self, selection: Selection) -> None:
        """Called before anything is written. Raises a TailorError for a run that the form cannot represent."""

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        """Add or change files in `folder`, which has the weights and the tokenizer. Returns notes for the user."""
        return ()

    def card(self, folder: Path) -> CardSection | None:
        """The form's part of the model card. None keeps the default text. Called after `write`."""
        return None

    def next_step(self, url: str) -> str | None:
        """The command that loads the folder exported to `url`, to show to the user; None for no command."""
        return None
