"""A small collection in BEIR's layout, and a model folder that embeds with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tailor.models.embedding.pooling import new_projection
from tailor.models.embedding.settings import Embedding
from tests.helpers.models import tiny_llama

WORDS = [
    "sea",
    "wind",
    "coat",
    "needle",
    "thread",
    "wool",
    "linen",
    "harbour",
    "shirt",
    "button",
    "collar",
    "sleeve",
]
QUERIES = [("q1", "wool coat"), ("q2", "a needle for linen"), ("q3", "the harbour"), ("q4", "a shirt")]
JUDGED = [
    ("q1", "d1", 2),
    ("q1", "d5", 1),
    ("q2", "d7", 1),
    ("q3", "d3", 0),
    ("q3", "d11", 1),
    ("q4", "d2", 1),
]


def passages(count: int = 40) -> list[dict[str, str]]:
    return [
        {
            "_id": f"d{at}",
            "title": WORDS[at % 12].upper() if at % 3 else "",
            "text": " ".join(WORDS[(at * step + step) % 12] for step in range(1, 3 + at % 7)),
        }
        for at in range(count)
    ]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def beir_folder(folder: Path, judged: Iterable[tuple[Any, ...]] = JUDGED, split: str = "test") -> Path:
    """corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""
    write_jsonl(folder / "corpus.jsonl", passages())
    write_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES])
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def pair_rows(instruction: str | None = None) -> list[dict[str, Any]]:
    """Rows of a query with a passage that answers it and one that does not, some of them shared."""

    def text(value: str) -> Any:
        return [instruction, value] if instruction else value

    return [
        {
            "query": text(f"{word}?"),
            "pos": [text(f"of {word}"), text(f"{word}!")],
            "neg": [text(f"of {WORDS[at - 1]}"), text("no more")],
        }
        for at, word in enumerate(WORDS)
    ]


def embedding_model(
    folder: Path,
    *,
    seed: int = 0,
    projection: int | None = None,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A model folder that makes embeddings. model: changes of its configuration."""
    tiny_llama(folder, seed=seed, **(model or {}))
    made = None if projection is None else new_projection(64, projection, seed=seed)
    Embedding(
        **{"dimension": projection or 64, "projection": made is not None, "max_length": 128, **settings}
    ).write(folder, None if made is None else made.state_dict())
    return folder
