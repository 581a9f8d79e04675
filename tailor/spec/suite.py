"""What is evaluated of a model: in an evaluation file, or of a finished run (`evaluate.final` of its recipe)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.data import Budget, Chunk, Retrieve, Source
from tailor.spec.tasks.answers import F1, ExactMatch
from tailor.spec.tasks.perplexity import Perplexity
from tailor.spec.tasks.registry import Task


class Rows(Section):
    """Rows to evaluate on, in place of the run's own evaluation rows."""

    evaluation: list[Source] = Field(min_length=1)
    """Where the rows come from, as in a recipe's `data`."""

    max_length: int | None = Field(None, ge=8)
    """Longest example, in tokens. Default: `data.max_length` of the run's recipe; 2048 for a model without a run."""

    on_long: Literal["drop", "truncate", "chunk", "retrieve"] = "drop"
    """What happens to an example over `max_length`. `chunk` is for the perplexity of long texts, `retrieve` for answers."""

    chunk: Chunk | None = None
    """How `on_long: chunk` cuts."""

    retrieve: Retrieve | None = None
    """How `on_long: retrieve` chooses."""

    budget: Budget = Budget()
    """What share of the rows may be lost."""


class Decoding(Section):
    """How answers are generated."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""

    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; above, `seed` decides the draws, for each row by itself."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest tokens of this mass."""

    seed: int = Field(0, ge=0)
    """Decides the draws."""

    batch_size: int = Field(16, ge=1)
    """Rows that go through the model at once."""


class Intervals(Section):
    """Confidence intervals, by the percentiles of a paired bootstrap over rows."""

    samples: int = Field(1000, ge=100)
    """Times the rows are drawn anew, with replacement; the same draw for all models."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Share of the samples inside the interval."""

    seed: int = Field(0, ge=0)
    """Decides the draws of the rows."""


class Suite(Section):
    """Tasks, the rows and the models that they are done with, and the bounds that their figures must keep."""

    name: str | None = Field(None, min_length=1)
    """Name of the result's folder below `evaluation/`. Default: the evaluation file's name, or `final`."""

    data: Rows | None = None
    """Rows to evaluate on. Default: the run's evaluation rows."""

    limit: int | None = Field(200, ge=1)
    """Evaluate on so many of those rows, from the start. `null` takes all."""

    tasks: list[Task] = Field(
        [Perplexity(name="perplexity"), ExactMatch(name="exact_match"), F1(name="f1")], min_length=1
    )
    """What is measured."""

    decoding: Decoding = Decoding()
    """How answers are generated."""

    compare: Literal["auto", "base", "none"] | list[str] = "auto"
    """Models beside the evaluated one: `base`, `none`, or a list of `base`, runs and models. `auto` is `base` for an adapter."""

    intervals: Intervals = Intervals()
    """Confidence intervals."""

    fail_if: dict[str, str] = {}
    """Bounds: figure -> comparison, such as `rougeL: "< 0.3"`. One that holds ends the command with exit code 3."""

    workers: int | None = Field(None, ge=1)
    """Workers that share the rows. Default: one per GPU of the machine or cluster, else one. They change no figure."""
