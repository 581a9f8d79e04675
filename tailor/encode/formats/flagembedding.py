"""flagembedding: FlagEmbedding's queries and passages as plain texts; `prompt` is the instruction of the query.

Single rows may have [instruction, text] pairs, as in the format gritlm: a file may mix both.
"""

from __future__ import annotations

from tailor.encode.fields import are_texts
from tailor.encode.formats.base import Format
from tailor.encode.formats.gritlm import FIELDS, convert
from tailor.spec.data import RELEVANCE

FLAGEMBEDDING = Format(
    "flagembedding",
    RELEVANCE,
    fields=FIELDS,
    required=("query", "pos"),
    convert=convert,
    form=lambda picked: isinstance(picked["query"], str) and are_texts(picked["pos"]),
)
