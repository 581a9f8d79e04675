"""Rows that a task brings: where they come from."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section


class Questions(Section):
    """Rows with a question and what is to be found or chosen: JSONL, JSON, Parquet, CSV or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, any fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset."""

    columns: dict[str, str] = {}
    """Where the fields stand in these rows, as `field: column`, for example `question: prompt`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration name of a Hugging Face dataset."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    limit: int | None = Field(None, ge=1)
    """Read only this many rows, from the start."""


class Texts(Section):
    """Rows with a text: JSONL, JSON, Parquet, CSV, plain text or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, any fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset."""

    columns: dict[str, str] = {}
    """Where the text stands in these rows, as `text: column`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration name of a Hugging Face dataset."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset, or the files of a folder or glob whose names say it; `all` takes every file. Needed
    where files say several."""

    limit: int | None = Field(None, ge=1)
    """Read only this many rows, from the start."""


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
