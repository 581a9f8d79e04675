"""Format numbers, sizes and times for messages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any


def duration(seconds: float) -> str:
    """A duration: 3.2 s, 1 min 05 s, 2 h 03 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float) -> str:
    """A number with three significant digits: 812, 3.41k, 12.0M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return (
                f"{scaled:.2f}{unit}"
                if scaled < 10
                else f"{scaled:.1f}{unit}"
                if scaled < 100
                else f"{scaled:.0f}{unit}"
            )
    return f"{value:.0f}"


def size(count: float) -> str:
    """A number of bytes in binary units: 512 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "KiB", "MiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


_MEASURED = {
    "embedding_loss": "embedding loss {:.4f}",
    "distillation_loss": "distillation loss {:.4f}",
    "generative_loss": "generative loss {:.4f}",
    "ranking_loss": "ranking loss {:.4f}",
    "ranking_accuracy": "ranking accuracy {:.1%}",
    "ndcg_at_10": "NDCG@10 {:.4f}",
    "embedding_accuracy": "embedding accuracy {:.1%}",
    "without_negatives": "queries without negatives {:.1%}",
    "perplexity": "perplexity {:.4g}",
    "token_accuracy": "token accuracy {:.1%}",
    "reward_accuracy": "reward accuracy {:.1%}",
    "reward_margin": "reward margin {:.4g}",
}


def measured(record: Mapping[str, Any]) -> list[str]:
    """The method's metrics in a record as texts, such as `token accuracy 93.1%`, without a part that is the whole loss."""
    return [
        words.format(record[name])
        for name, words in _MEASURED.items()
        if record.get(name) is not None
        and not (name.endswith("_loss") and record[name] == record.get("loss"))
    ]


def now() -> str:
    """The current time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
