"""What an export form defines: the weights that it takes, its checks, its files, and its part of the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from tailor.export.request import Selection, Weights


@dataclass(frozen=True)
class CardSection:
    """What replaces the card's own text for transformers and PEFT."""

    use: str
    """Markdown below the heading `## Use`: how to load the folder."""
    metadata: Mapping[str, Any]
    """Keys of the card's YAML, such as `library_name`."""
    tags: Sequence[str] = ()
    """Put before the other tags."""


class ExportForm:
    """A layout of the exported folder. The defaults write no file beside the weights and the tokenizer.

    Its module is imported when a command names the form.
    """

    weights: ClassVar[tuple[Weights, ...]] = ("merged", "model")
    """What it takes, the default first: `adapter` or `merged` of a run with an adapter, `model` of one that trained
    every weight. A form that does not take `adapter` gets a whole model of every run."""
    reads_base: ClassVar[bool] = False
    """Whether it reads the base of an adapter that is not merged, so that `--base` has an effect."""
    takes_checkpoints: ClassVar[bool] = False
    """Whether a checkpoint can be exported in it. Its weights are as they were trained, never merged, and the artifact of
    an unfinished run is missing in `check`."""
    options: ClassVar[tuple[str, ...]] = ()
    """Those that it reads of the options for single forms: `query_instruction`."""

    def refusal(self, weights: Weights) -> str:
        """Why it does not take `weights`, for the error message."""
        return f"this export form takes {' or '.join(self.weights)} weights, not {weights}"

    def check(self, selection: Selection) -> None:
        """Called before anything is written. Raises a TailorError for a run that the form cannot represent."""

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        """Add or change files in `folder`, which has the weights and the tokenizer. Returns notes for the user."""
        return ()

    def card(self, folder: Path) -> CardSection | None:
        """Called after `write`. None for the text for transformers and PEFT."""
        return None

    def next_step(self, url: str) -> str | None:
        """The command that reads the folder published at `url`, if there is one to show."""
        return None
