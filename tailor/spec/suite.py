"""What is evaluated: the keys of an evaluation file, and of `evaluate.final` in a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.data import Budget, Chunk, Retrieve, Source
from tailor.spec.tasks.answers import F1, ExactMatch
from tailor.spec.tasks.perplexity import Perplexity
from tailor.spec.tasks.registry import Task

BASE = "base"
"""The value of `compare` that means the model that the evaluated one was trained from, and its label."""
UNSCALED = "unscaled_base"
"""The value of `compare` that means the base without `model.rope`, and its label."""


class Rows(Section):
    """Rows to evaluate on, instead of the run's own evaluation rows."""

    evaluation: list[Source] = Field(min_length=1)
    """Sources of the rows, as in `data` of a recipe."""

    max_length: int | None = Field(None, ge=8)
    """Longest example, in tokens. Default: `data.max_length` of the run's recipe, or 2048 for a model without a run.
    """

    on_long: Literal["drop", "truncate", "chunk", "retrieve"] = "drop"
    """What happens to an example longer than `max_length`: `drop`, `truncate`, `chunk` (for the perplexity of long
    texts) or `retrieve` (for answers to long prompts). See `data.on_long` of a recipe.
    """

    chunk: Chunk | None = None
    """Settings of `on_long: chunk`."""

    retrieve: Retrieve | None = None
    """Settings of `on_long: retrieve`."""

    budget: Budget = Budget()
    """Largest share of a source's rows that may be lost before the evaluation fails."""


class Decoding(Section):
    """How answers are generated."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest generated answer, in tokens. Longer answers are cut."""

    temperature: float = Field(0.0, ge=0)
    """Sampling temperature. 0 means greedy decoding. Above 0, each row has its own random numbers from `seed`, so the
    batch size does not change them.
    """

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: sample only from the most likely tokens with this total probability."""

    seed: int = Field(0, ge=0)
    """Seed of the sampling."""

    samples: int = Field(1, ge=1, le=1000)
    """Sampled answers per question. Scores are means over them, and metrics of right or wrong answers also get
    `METRIC/pass@K` for K = 2, 4, 8 … up to this number. Needs a temperature above 0.
    """

    batch_size: int = Field(16, ge=1)
    """Rows in one forward pass. Lower it if the evaluation runs out of GPU memory."""


def pass_counts(samples: int) -> tuple[int, ...]:
    """The K of `pass@K`: the powers of two from 2 to the number of samples, and that number."""
    powers = tuple(2**at for at in range(1, samples.bit_length()))
    return powers if samples == 1 or samples in powers else (*powers, samples)


class Intervals(Section):
    """Confidence intervals of the metrics, from a paired bootstrap over rows (percentile method), and p-values of the
    differences, from a paired randomization test.
    """

    samples: int = Field(1000, ge=100)
    """Number of bootstrap samples, and of random exchanges for a p-value. All models use the same samples."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence level of the intervals."""

    seed: int = Field(0, ge=0)
    """Seed of the bootstrap samples and of the random exchanges."""


class Suite(Section):
    """Tasks, the rows and models to evaluate, and conditions that make the evaluation fail."""

    name: str | None = Field(None, min_length=1)
    """Name of the results' folder in `evaluation/`. Default: the name of the evaluation file, or `final`."""

    data: Rows | None = None
    """Rows to evaluate on. Default: the run's own evaluation rows."""

    limit: int | None = Field(200, ge=1)
    """Evaluate on the first N rows. `null` uses all rows."""

    by: str | None = Field(None, min_length=1)
    """Also report the metrics for each value of this column of the evaluation rows, such as a topic or language. The 20
    most frequent values are separate, all others are together. Default: off.
    """

    tasks: list[Task] = Field(
        [Perplexity(name="perplexity"), ExactMatch(name="exact_match"), F1(name="f1")], min_length=1
    )
    """Tasks of the evaluation, each with the metrics that it measures."""

    decoding: Decoding = Decoding()
    """How answers are generated."""

    compare: Literal["auto", "base", "none"] | list[str] = "auto"
    """Models to compare with: `base` (the base model), `none`, or a list of `base`, `unscaled_base`, run folders and
    models. `unscaled_base` is the base without the run's `model.rope`. `auto` means `base` for an adapter, else `none`.
    """

    intervals: Intervals = Intervals()
    """Confidence intervals of the metrics."""

    fail_if: dict[str, str] = {}
    """Conditions that fail the evaluation: metric -> comparison with a number, for example `rougeL: "< 0.3"`, or with a
    model of `compare` and a margin, for example `rougeL: "< base - 0.02"`. If one is true, the command ends with exit
    code 3. Use it in CI. The values decide, not their confidence intervals.
    """

    workers: int | None = Field(None, ge=1)
    """Number of workers that share the rows. Default: one per GPU of the machine or cluster, or one without GPUs. It
    does not change the metrics.
    """
