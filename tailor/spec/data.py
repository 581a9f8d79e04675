"""`data`: where the rows come from and how they become token examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tailor.registry import Registry
from tailor.spec.base import NameOf, Section

Kind = Literal["examples", "texts", "pairs", "rated", "relevance"]
"""A kind of rows. A format gives rows of one kind, and a method names the kinds that it reads."""
KINDS: tuple[Kind, ...] = get_args(Kind)

EXAMPLES: Kind = "examples"
"""Examples to learn: a conversation, or a prompt with its response."""
TEXTS: Kind = "texts"
"""Plain texts. They are examples too: a method that reads examples reads them."""
PAIRS: Kind = "pairs"
"""A chosen and a rejected answer to a prompt."""
RATED: Kind = "rated"
"""An answer to a prompt, and a label."""
RELEVANCE: Kind = "relevance"
"""A query, texts that answer it, and texts that do not."""

_BUILTIN: dict[str, tuple[Kind, str]] = {
    "messages": (EXAMPLES, "messages:MESSAGES"),
    "sharegpt": (EXAMPLES, "sharegpt:SHAREGPT"),
    "firefly": (EXAMPLES, "firefly:FIREFLY"),
    "alpaca": (EXAMPLES, "alpaca:ALPACA"),
    "completion": (EXAMPLES, "completion:COMPLETION"),
    "text": (TEXTS, "text:TEXT"),
    "turns": (EXAMPLES, "turns:TURNS"),
    "preference": (PAIRS, "preference:PREFERENCE"),
    "preference_text": (PAIRS, "preference:PREFERENCE_TEXT"),
    "preference_sharegpt": (PAIRS, "preference:PREFERENCE_SHAREGPT"),
    "preference_alpaca": (PAIRS, "preference:PREFERENCE_ALPACA"),
    "unpaired": (RATED, "unpaired:UNPAIRED"),
    "unpaired_text": (RATED, "unpaired:UNPAIRED_TEXT"),
    "gritlm": (RELEVANCE, "gritlm:GRITLM"),
    "flagembedding": (RELEVANCE, "flagembedding:FLAGEMBEDDING"),
    "tevatron": (RELEVANCE, "tevatron:TEVATRON"),
    "sentence_transformers": (RELEVANCE, "sentence_transformers:SENTENCE_TRANSFORMERS"),
}

FORMAT_KINDS: dict[str, Kind] = {name: kind for name, (kind, _) in _BUILTIN.items()}
"""Built-in format -> the kind of its rows, so that a recipe is checked without loading a format."""

FORMATS: Registry[Any] = Registry(
    "tailor.formats", {name: f"tailor.encode.formats.{code}" for name, (_, code) in _BUILTIN.items()}
)
"""All formats by name. Here only names are asked for; `tailor.encode.formats` loads them."""


def is_read(kind: Kind, kinds: Sequence[Kind]) -> bool:
    """Whether a method that reads `kinds` reads rows of this kind."""
    return kind in kinds or (kind == TEXTS and EXAMPLES in kinds)


def builtin_formats(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The built-in formats of these kinds, those of the first kind first."""
    return tuple(
        name
        for wanted in dict.fromkeys(kinds)
        for name, kind in FORMAT_KINDS.items()
        if is_read(kind, (wanted,))
    )


class Source(Section):
    """One set of rows."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, any fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset."""

    format: Annotated[str, NameOf(FORMATS, "auto")] = "auto"
    """What a row means. `auto` looks at the first rows and says which it took."""

    columns: dict[str, str] = {}
    """Where a format's fields stand in these rows, as `field: column`, for example `prompt: question`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration name of a Hugging Face dataset."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    weight: float = Field(1.0, gt=0)
    """How often an epoch shows these rows: 2.0 shows each twice, 0.5 half of them."""

    limit: int | None = Field(None, ge=1)
    """Read only this many rows, from the start."""


class Budget(Section):
    """What share of the rows may be lost before the run is refused. Every loss is counted and named."""

    unreadable: float = Field(0.0, ge=0, le=1)
    """Rows that cannot be read: bad JSON, missing keys, wrong types, empty conversations."""

    dropped: float = Field(0.05, ge=0, le=1)
    """Readable rows left out: too long with `on_long: drop`, nothing to supervise, or a pair of equal answers."""

    truncated: float = Field(1.0, ge=0, le=1)
    """Rows cut with `on_long: truncate`."""


class Chunk(Section):
    """How `on_long: chunk` cuts. Every token is learned once, in the first chunk that holds it."""

    overlap: int = Field(1, ge=1)
    """Tokens of the chunk before that a chunk begins with, as context. With one, a chunk begins where the other ends."""

    min_length: int = Field(2, ge=2)
    """Shortest chunk, in tokens: a shorter last one reaches further back into the one before."""


class Retrieve(Section):
    """How `on_long: retrieve` chooses among the passages of a long prompt.

    The end of the prompt is the question. It stays with all that follows, and so does the first passage; of the
    others those stay, in their order, that suit the question best and fit: by BM25 (k1 0.9, b 0.4), which counts the
    words that they share, or by the cosine of an embedder's embeddings.
    """

    passage: int = Field(128, ge=8)
    """Tokens of a passage."""

    question: int = Field(64, ge=1)
    """Tokens before the answer that are the question."""

    embedder: str | None = Field(None, min_length=1)
    """What scores passages in BM25's place: a run that was trained with gritlm, its adapter or model folder, or a
    sentence-transformers model, by a folder, a URL or an id of the hub. It computes on CPUs: take a small one."""

    query_instruction: str | None = Field(None, min_length=1)
    """Instruction of the question, for an embedder of gritlm. A sentence-transformers model declares its own prompts."""


class Data(Section):
    """Rows, and how they become token examples."""

    train: list[Source] = Field(min_length=1)
    """Sources to train on."""

    evaluation: list[Source] = []
    """Sources to evaluate on."""

    holdout: float | None = Field(None, gt=0, lt=1)
    """Share of the training rows kept for evaluation, chosen by a hash of the row's content, so that it is stable.
    Answers to one prompt, and passages of one query, stay together."""

    template: str | None = Field(None, min_length=1)
    """Chat template: a built-in name (`tailor init --templates` lists them), a Jinja file, or none for the model's own."""

    date: str = Field("2024-07-26", pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")
    """The date, as YYYY-MM-DD, that a chat template gets when it asks for today's (`strftime_now`), so that the same
    rows give the same tokens on every day. It is in the manifest of the tokens. The default is the one that the
    templates of Llama 3 take where they cannot ask."""

    max_length: int = Field(2048, ge=8)
    """Longest example, and the length of a packed row, in tokens. A pair that is longer gets a row of its own."""

    on_long: Literal["drop", "truncate", "chunk", "retrieve"] = "drop"
    """What happens to an example over `max_length`. `chunk` cuts it into pieces and loses nothing; `retrieve` keeps the
    passages of a long prompt that suit its question.

    An answer of preference data is cut with its prompt's start and its own end, and can be no chunk.
    """

    chunk: Chunk | None = None
    """How `on_long: chunk` cuts."""

    retrieve: Retrieve | None = None
    """How `on_long: retrieve` chooses."""

    pack: bool = True
    """Put several examples into one row. Examples never see each other, and nothing is cut to fit."""

    budget: Budget = Budget()
    """What share of the rows may be lost."""

    store: str | None = Field(None, min_length=1)
    """Where prepared tokens are kept, an fsspec URL. Default: `tokens` beside the run's folder."""
