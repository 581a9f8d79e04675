"""The records of `metrics.jsonl` by kind: the keys that reports, messages and a resumed run read. Further keys are allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.store.json_files import Count, JsonFile, Number

HEADER = "header"
"""Kind of the first record, which has the version of the format."""


class _Header(TypedDict):
    kind: Literal["header"]


class _Other(TypedDict):
    kind: str
    step: NotRequired[Count]


class _Train(TypedDict):
    kind: str
    step: Count
    loss: Number | None
    tokens_per_second: Number
    data_seconds: Number
    step_seconds: Annotated[Number, Field(gt=0)]
    padding: Number
    diverged: NotRequired[bool]
    peak_memory_bytes: NotRequired[Count | None]
    learning_rate: NotRequired[Number | None]
    grad_norm: NotRequired[Number | None]
    router_loss: NotRequired[Number | None]
    router_z_loss: NotRequired[Number | None]
    reward_accuracy: NotRequired[Number | None]
    reward_margin: NotRequired[Number | None]
    supervised_tokens_per_second: NotRequired[Number | None]


class _Evaluation(TypedDict):
    kind: str
    step: Count
    loss: Number | None
    supervised_tokens: NotRequired[Count]
    perplexity: NotRequired[Number | None]
    token_accuracy: NotRequired[Number]
    reward_accuracy: NotRequired[Number]
    reward_margin: NotRequired[Number | None]
    peak_memory_bytes: NotRequired[Count | None]


class _Generation(TypedDict):
    kind: str
    step: NotRequired[Count]
    when: str
    exact_match: Number


_Retrieval = TypedDict(
    "_Retrieval",
    {"kind": str, "step": Count, "recall@1": Number, "recall@10": NotRequired[Number], "ndcg@10": Number},
)


class _Checkpoint(TypedDict):
    kind: str
    step: Count


class _Artifact(TypedDict):
    kind: str
    step: NotRequired[Count]
    made_from: Count


class _Resumed(TypedDict):
    kind: str
    step: Count
    sent: dict[str, Count]


_KINDS = ("train", "evaluation", "generation", "retrieval", "checkpoint", "artifact", "resumed")


def _tag(record: Any) -> str:
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) and kind in _KINDS else "other"


RECORD: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        Annotated[_Train, Tag("train")]
        | Annotated[_Evaluation, Tag("evaluation")]
        | Annotated[_Generation, Tag("generation")]
        | Annotated[_Retrieval, Tag("retrieval")]
        | Annotated[_Checkpoint, Tag("checkpoint")]
        | Annotated[_Artifact, Tag("artifact")]
        | Annotated[_Resumed, Tag("resumed")]
        | Annotated[_Other, Tag("other")],
        Discriminator(_tag),
    ]
)
HEADER_FILE = JsonFile(_Header, "remove the first line of {file}")
