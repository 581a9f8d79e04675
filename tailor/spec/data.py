"""`data`: the training and evaluation rows, and how they become token examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tailor.registry import Registry
from tailor.spec.base import NameOf, Section

Kind = Literal["examples", "texts", "pairs", "rated", "relevance"]
"""The kind of a row. Each format produces one kind; each method names the kinds that it reads."""
KINDS: tuple[Kind, ...] = get_args(Kind)

EXAMPLES: Kind = "examples"
"""Examples for next-token training: a conversation, or a prompt with its response."""
TEXTS: Kind = "texts"
"""Plain texts. A method that reads examples reads plain texts too."""
PAIRS: Kind = "pairs"
"""A prompt with a chosen and a rejected answer."""
RATED: Kind = "rated"
"""A prompt with one answer and a label."""
RELEVANCE: Kind = "relevance"
"""A query, texts that answer it (positives), and texts that do not (negatives)."""

_BUILTIN: dict[str, tuple[Kind, str]] = {
    "messages": (EXAMPLES, "messages:MESSAGES"),
    "sharegpt": (EXAMPLES, "sharegpt:SHAREGPT"),
    "firefly": (EXAMPLES, "firefly:FIREFLY"),
    "alpaca": (EXAMPLES, "alpaca:ALPACA"),
    "completion": (EXAMPLES, "completion:COMPLETION"),
    "completion_messages": (EXAMPLES, "completion_messages:COMPLETION_MESSAGES"),
    "text": (TEXTS, "text:TEXT"),
    "turns": (EXAMPLES, "turns:TURNS"),
    "preference": (PAIRS, "preference:PREFERENCE"),
    "preference_text": (PAIRS, "preference:PREFERENCE_TEXT"),
    "preference_sharegpt": (PAIRS, "preference:PREFERENCE_SHAREGPT"),
    "preference_alpaca": (PAIRS, "preference:PREFERENCE_ALPACA"),
    "unpaired": (RATED, "unpaired:UNPAIRED"),
    "unpaired_text": (RATED, "unpaired:UNPAIRED_TEXT"),
    "unpaired_sharegpt": (RATED, "unpaired:UNPAIRED_SHAREGPT"),
    "unpaired_alpaca": (RATED, "unpaired:UNPAIRED_ALPACA"),
    "gritlm": (RELEVANCE, "gritlm:GRITLM"),
    "flagembedding": (RELEVANCE, "flagembedding:FLAGEMBEDDING"),
    "tevatron": (RELEVANCE, "tevatron:TEVATRON"),
    "sentence_transformers": (RELEVANCE, "sentence_transformers:SENTENCE_TRANSFORMERS"),
}

FORMAT_KINDS: dict[str, Kind] = {name: kind for name, (kind, _) in _BUILTIN.items()}
"""Built-in format -> the kind of its rows. With it a recipe is checked without importing the format."""

FORMATS: Registry[Any] = Registry(
    "tailor.formats", {name: f"tailor.encode.formats.{code}" for name, (_, code) in _BUILTIN.items()}
)
"""All formats by name. This module uses only the names; `tailor.encode.formats` imports the code."""


def is_read(kind: Kind, kinds: Sequence[Kind]) -> bool:
    """Whether a method that reads `kinds` can read rows of this kind."""
    return kind in kinds or (kind == TEXTS and EXAMPLES in kinds)


def builtin_formats(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The built-in formats of these kinds, in the order of `kinds`."""
    return tuple(
        name
        for requested in dict.fromkeys(kinds)
        for name, kind in FORMAT_KINDS.items()
        if is_read(kind, (requested,))
    )


class Source(Section):
    """One source of rows."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob pattern, an fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset.
    """

    format: Annotated[str, NameOf(FORMATS, "auto")] = "auto"
    """How a row is read: the names and meaning of its fields. `auto` detects the format from the first rows and
    reports it.
    """

    columns: dict[str, str] = {}
    """Renames columns: `field: column` for each field of the format that has another name in these rows, for example
    `prompt: question`.
    """

    subset: str | None = Field(None, min_length=1)
    """Configuration (subset) of a Hugging Face dataset. Default: the dataset's default configuration."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    weight: float = Field(1.0, gt=0)
    """How often one epoch shows the rows of this source: 2.0 shows each row twice, 0.5 shows half of them. Use it to
    balance sources. With `data.weight_by: tokens`, the share of an epoch's tokens that come from this source.
    """

    samples: int | None = Field(None, ge=1)
    """Number of rows that one epoch shows, drawn at random for each epoch; all rows if there are fewer. It replaces `weight`.
    """

    limit: int | None = Field(None, ge=1)
    """Use only the first N rows. Default: all rows."""

    query_instruction: str | None = Field(None, min_length=1)
    """Instruction of the queries that have none in their row, for rows of queries with passages. Default: none."""

    passage_instruction: str | None = Field(None, min_length=1)
    """Instruction of the passages that have none in their row, for rows of queries with passages. Default: none."""

    dataset_column: str | None = Field(None, min_length=1)
    """Column with the name of the dataset that a row comes from, such as `task_name`, for `method.batch_by: dataset` of
    gritlm. Default: each file is a dataset.
    """


class Benchmark(Section):
    """Rows that the model will be tested on. All texts in them are compared, whatever the names of the columns."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob pattern, an fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset.
    """

    subset: str | None = Field(None, min_length=1)
    """Configuration (subset) of a Hugging Face dataset. Default: the dataset's default configuration."""

    split: str = Field("test", min_length=1)
    """Split of a Hugging Face dataset."""

    limit: int | None = Field(None, ge=1)
    """Use only the first N rows. Default: all rows."""


class Budget(Section):
    """Largest share of a source's rows that may be lost, from 0 to 1.

    If more are lost, preparation fails. The data report lists every loss.
    """

    unreadable: float = Field(0.0, ge=0, le=1)
    """Rows that cannot be read: bad JSON, missing keys, wrong types, empty conversations. Raise it for data that you
    know to be damaged in part.
    """

    dropped: float = Field(0.05, ge=0, le=1)
    """Readable rows that are left out: too long with `on_long: drop`, without any supervised token, or a preference
    pair with two equal answers.
    """

    truncated: float = Field(1.0, ge=0, le=1)
    """Rows that are shortened by `on_long: truncate`. The default 1.0 sets no limit."""


class Chunk(Section):
    """How `on_long: chunk` cuts a long example.

    Every chunk starts with the tokenizer's prefix (BOS) and a conversation's system turn, which count in its length.
    Chunks may overlap, but each token counts in the loss only once, in the first chunk that has it.
    """

    overlap: int = Field(1, ge=1)
    """Tokens that a chunk repeats from the end of the previous chunk, as context. Raise it to give the start of each
    chunk more context; the repeated tokens cost compute.
    """

    min_length: int = Field(2, ge=2)
    """Shortest chunk, in tokens. If the last chunk would be shorter, it repeats more of the previous one."""


class Retrieve(Section):
    """How `on_long: retrieve` shortens a long prompt: it keeps only the passages that are relevant to the question.

    The end of the prompt is the question. The question, everything after it and the first passage are always kept.
    The other passages are ranked by BM25 (k1 0.9, b 0.4) or by the cosine similarity of an embedder's embeddings; the
    best that fit are kept, in their original order.
    """

    passage: int = Field(128, ge=8)
    """Length of a passage, in tokens."""

    question: int = Field(64, ge=1)
    """Number of tokens right before the answer that are taken as the question."""

    embedder: str | None = Field(None, min_length=1)
    """Embedding model that scores the passages: a run trained with gritlm, its adapter or model folder, or a
    sentence-transformers model, given as a folder, a URL or a hub id. It runs on CPU, so choose a small one. Default:
    BM25, without a model.
    """

    query_instruction: str | None = Field(None, min_length=1)
    """Instruction before the question, for a gritlm embedder. Default: none. A sentence-transformers model has its
    own prompts.
    """


class Data(Section):
    """The training and evaluation rows, and how they become token examples."""

    train: list[Source] = Field(min_length=1)
    """Sources of the training rows."""

    weight_by: Literal["rows", "tokens"] = "rows"
    """What the `weight` of a source means. `rows`: how often an epoch shows its rows. `tokens`: its share of the tokens,
    relative to the other weights, so that weights 3 and 1 give 75 % and 25 %, whatever the length of the rows. An epoch
    then has as many tokens as all sources together: a source with fewer than its share is repeated, and of one with more,
    an epoch shows a random part.
    """

    evaluation: list[Source] = []
    """Sources of the evaluation rows. Default: none. Use `holdout` instead to take evaluation rows from the training
    sources.
    """

    holdout: float | None = Field(None, gt=0, lt=1)
    """Share of the training rows that is kept for evaluation and not trained on, for example 0.05. Rows are chosen by
    a hash of their content, so the choice is the same in every run. All answers to one prompt, and all passages of
    one query, stay on the same side. Default: none.
    """

    deduplicate: Literal["exact", "near"] | None = None
    """Leave out training rows that repeat an earlier one, over all sources. `exact`: the content is equal. `near`: prompt
    and answer are each nearly equal (MinHash, Jaccard similarity of at least 0.7 between runs of 3 words); needs `pip
    install 'tailor[doctor]'`. Default: all rows are kept.
    """

    decontaminate: list[Benchmark] = []
    """Leave out training rows that contain a text of these benchmarks: at least half of its runs of 8 words. `tailor
    data doctor` compares the rows with them too. Default: none.
    """

    template: str | None = Field(None, min_length=1)
    """Chat template: a built-in name (`tailor init --templates` lists them) or a Jinja file. Default: the model's own
    template. Set it for a base model that has none.
    """

    template_arguments: dict[str, Any] = {}
    """Variables of the chat template, such as `enable_thinking: false`. They are saved with the template, as defaults."""

    reasoning: Literal["keep", "drop"] = "keep"
    """What happens to an assistant's reasoning (`reasoning_content`, `thinking` or a `<think>` block). `keep`: a row whose
    learned reasoning the chat template does not write is refused. `drop`: it is removed from all rows."""

    date: str = Field("2024-07-26", pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")
    """The date, as YYYY-MM-DD, that a chat template gets when it asks for today's (`strftime_now`), so that the same
    rows give the same tokens on every day. It is in the manifest of the tokens. The default is the one that the
    templates of Llama 3 take where they cannot ask."""

    max_length: int = Field(2048, ge=8)
    """Longest example, in tokens, and the length of a packed row. A preference pair whose answers together are longer
    gets a row of its own. Longer examples need more GPU memory; see `on_long` for what exceeds the limit.
    """

    min_length: int | None = Field(None, ge=1)
    """Shortest row, in tokens with special ones: shorter rows are left out and counted as `too_short`, which
    `data.budget` does not limit. Of a row with several examples, such as a preference pair, the longest counts. Rows are
    measured before `on_long`. Default: no limit.
    """

    on_long: Literal["drop", "truncate", "chunk", "retrieve"] = "drop"
    """What happens to an example longer than `max_length`: `drop` leaves it out, `truncate` shortens it, `chunk`
    splits it into several examples without losing tokens, `retrieve` keeps the passages of a long prompt that are
    relevant to its question.

    With preference data, `truncate` removes the start of the prompt after BOS and the end of the answer; `chunk` is
    not possible.
    """

    chunk: Chunk | None = None
    """Settings of `on_long: chunk`."""

    retrieve: Retrieve | None = None
    """Settings of `on_long: retrieve`."""

    pack: bool = True
    """Put several examples into one row of `max_length` tokens, so that less compute is spent on padding. Attention
    is limited to each example, and no example is split to fit.
    """

    budget: Budget = Budget()
    """Largest share of a source's rows that may be lost before preparation fails."""

    store: str | None = Field(None, min_length=1)
    """Folder or fsspec URL where tokenized rows are stored and reused by later runs. Default: `tokens` beside the
    run's folder.
    """
