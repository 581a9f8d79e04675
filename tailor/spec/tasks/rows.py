"""Sources of the rows that a task has of its own."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section


class Questions(Section):
    """A source of questions: JSONL, JSON, Parquet, CSV or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob pattern, an fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset.
    """

    columns: dict[str, str] = {}
    """Renames columns: `field: column` for each field that has another name in these rows, for example `question:
    prompt`.
    """

    subset: str | None = Field(None, min_length=1)
    """Configuration (subset) of a Hugging Face dataset. Default: the dataset's default configuration."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    limit: int | None = Field(None, ge=1)
    """Use only the first N rows. Default: all rows."""

    by: str | None = Field(None, min_length=1)
    """Also report the metrics for each value of this column of the rows, such as a topic or language. The 20 most
    frequent values are separate, all others are together. Default: off.
    """


class Texts(Section):
    """A source of texts: JSONL, JSON, Parquet, CSV, plain text or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob pattern, an fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset.
    """

    columns: dict[str, str] = {}
    """Renames the column of the text: `text: column`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration (subset) of a Hugging Face dataset. Default: the dataset's default configuration."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    limit: int | None = Field(None, ge=1)
    """Use only the first N rows. Default: all rows."""


class Corpus(Section):
    """A retrieval collection: queries, passages, and which passages are relevant to each query."""

    path: str = Field(min_length=1)
    """A folder in the BEIR layout (`corpus.jsonl`, `queries.jsonl`, `qrels/`), or a file of rows with queries and
    their passages, which together form the corpus. A local path or an fsspec URL.
    """

    qrels: str = Field("test", min_length=1)
    """Name of the relevance judgments in a BEIR folder: `qrels/NAME.tsv`. BEIR's three columns or TREC's four."""

    limit: int | None = Field(None, ge=1)
    """Use only the first N queries. The corpus stays complete. Default: all queries."""

    ignore_identical_ids: bool = False
    """Never count a passage with the query's own id as a result. For collections whose queries are also passages
    (ArguAna, Quora).
    """

    allow_missing: bool = False
    """Count a judged passage that the corpus does not have as not found, as trec_eval does, instead of raising an error. The
    results report their number.
    """
