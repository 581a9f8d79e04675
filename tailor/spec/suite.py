"""What is evaluated of a model: in an evaluation file, or of a finished run (`evaluate.final` of its recipe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.data import Budget, Chunk, Retrieve, Source
from tailor.spec.long import GRIDS, LongPerplexity, Needle, Passkey, figures


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


class Questions(Section):
    """Rows with a question and what is to be found or chosen: JSONL, JSON, Parquet, CSV or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, any fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset."""

    columns: dict[str, str] = {}
    """Where the fields stand in these rows, as `field: column`, for example `question: prompt`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration name of a Hugging Face dataset."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset."""

    limit: int | None = Field(None, ge=1)
    """Read only this many rows, from the start."""


class Perplexity(Section):
    """Loss, perplexity and token accuracy of the supervised tokens, weighted by token."""

    name: Literal["perplexity"]
    """Gives `loss`, `perplexity` and `token_accuracy`."""


class ExactMatch(Section):
    """Whether a generated answer is the reference answer."""

    name: Literal["exact_match"]
    """Gives `exact_match`."""

    normalize: bool = False
    """Compare without case, punctuation, articles (a, an, the) and surplus spaces, as SQuAD does."""


class F1(Section):
    """Overlap of words between answer and reference, as SQuAD counts it; CJK by characters."""

    name: Literal["f1"]
    """Gives `f1`."""


class Rouge(Section):
    """ROUGE of the answer against the reference, F-measures by rouge-score; CJK by characters. Needs the extra `evaluate`."""

    name: Literal["rouge"]
    """Gives `rouge1`, `rouge2` and `rougeL`."""

    stemmer: bool = False
    """Compare English words by their stems (Porter)."""


class MultipleChoice(Section):
    """Whether the likeliest of the given answers is the right one, by log-likelihood after the question."""

    name: Literal["multiple_choice"]
    """Gives `accuracy`, and `accuracy_norm` with log-likelihoods divided by the answers' lengths in characters."""

    data: Questions
    """Rows with `question`, `choices` (a list of texts) and `answer`: an index from 0, a letter, or the text."""


class Facts(Section):
    """A curated set of questions, and the facts that each answer must state."""

    name: Literal["facts"]
    """Gives `facts`: the mean share of a question's facts that its answer states."""

    data: Questions
    """Rows with `question` and `facts`: a list of texts, or of lists of texts of which one is enough."""


class Corpus(Section):
    """Queries, the passages that they search, and which of these are relevant."""

    path: str = Field(min_length=1)
    """A folder in BEIR's layout (`corpus.jsonl`, `queries.jsonl`, `qrels/`), or a file of rows with queries and their passages, all of which are the corpus. Local, or any fsspec URL."""

    qrels: str = Field("test", min_length=1)
    """The judgments of a folder: `qrels/NAME.tsv`."""

    limit: int | None = Field(None, ge=1)
    """Ask only this many queries, from the start. The corpus stays whole."""

    ignore_identical_ids: bool = False
    """A passage with the query's own id cannot be found, for collections whose queries are passages too (ArguAna, Quora)."""


class Searched(Section):
    """What is searched, and the instructions before the texts."""

    data: Corpus
    """Queries, corpus and judgments."""

    query_instruction: str | None = None
    """Instruction of every query. Default: that of its row, where the rows have any."""

    corpus_instruction: str | None = None
    """Instruction of every passage. Default: that of its row, where the rows have any."""

    dimension: int | None = Field(None, ge=1)
    """Take the first so many numbers of each embedding, for models trained with `method.matryoshka`. Default: all."""


class Retrieval(Searched):
    """Whether a query's relevant passages are the nearest to it, for models that make embeddings; as trec_eval counts."""

    name: Literal["retrieval"]
    """Gives `recall@1`, `recall@5`, `recall@10`, `recall@100`, `ndcg@10`, `mrr@10` and `map@100`."""


class LmEval(Section):
    """Tasks of lm-eval (EleutherAI's harness), with their own data and prompts. Needs the extra `lm-eval`."""

    name: Literal["lm_eval"]
    """Gives `TASK/METRIC` for each metric that is a share or a perplexity of its rows, such as `arc_easy/acc_norm`."""

    tasks: list[str] = Field(min_length=1)
    """lm-eval's names of tasks and groups, such as `arc_easy`."""

    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question. Default: the task's own number."""

    limit: int | None = Field(None, ge=1)
    """Only the first rows of each task."""

    chat: bool = False
    """Ask through the model's chat template, examples as turns. lm-eval's published figures are without."""

    include: str | None = Field(None, min_length=1)
    """A local folder with definitions of your own (YAML). Python functions that they name are run."""


Task = Annotated[
    Perplexity
    | ExactMatch
    | F1
    | Rouge
    | MultipleChoice
    | Facts
    | Retrieval
    | LmEval
    | LongPerplexity
    | Passkey
    | Needle,
    Field(discriminator="name"),
]

METRICS: dict[str, tuple[str, ...]] = {
    "perplexity": ("loss", "perplexity", "token_accuracy"),
    "exact_match": ("exact_match",),
    "f1": ("f1",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "multiple_choice": ("accuracy", "accuracy_norm"),
    "facts": ("facts",),
    "retrieval": ("recall@1", "recall@5", "recall@10", "recall@100", "ndcg@10", "mrr@10", "map@100"),
    "lm_eval": (),
}
"""Task -> the figures that it gives; those of lm_eval are known when it was made, those of tasks at given lengths
follow from the lengths (`metrics`)."""
ON_ROWS = ("perplexity", "exact_match", "f1", "rouge")
"""Tasks on the evaluation rows; the others bring rows of their own."""
GENERATED = ("exact_match", "f1", "rouge", "facts")
"""Tasks that judge generated answers."""


def metrics(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures that a task gives, from its plain values."""
    name = task.get("name")
    if name in (*GRIDS, "long_perplexity"):
        return figures(task)
    return METRICS.get(str(name), ())


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
