"""The JSON files of a run folder that more than one module reads: what they contain, and how they are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.errors import StoreError
from tailor.layout import DATA_REPORT, ENVIRONMENT, GENERATED, PLAN
from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.registry import METHODS, method_of
from tailor.spec.model import Model
from tailor.store.json_files import Count, JsonFile, Number, Positive, lines
from tailor.store.store import Store


class _Adapter(TypedDict):
    rank: int
    dora: NotRequired[bool]


class _Quantize(TypedDict):
    type: str


class _Model(TypedDict):
    path: str
    revision: NotRequired[str | None]
    adapter: NotRequired[_Adapter | None]
    quantize: NotRequired[_Quantize | None]
    beacon: NotRequired[dict[str, Any] | None]
    trust_remote_code: NotRequired[bool]


class _Method(TypedDict):
    name: str
    loss: NotRequired[str | None]


class _Save(TypedDict):
    best: NotRequired[bool]


class _Plan(TypedDict):
    """The keys of plan.json that are read after the run. `tailor.plan.Plan` describes all of them."""

    model: _Model
    method: _Method
    tokens_url: str
    fingerprint: str
    train_fingerprint: str
    order_version: NotRequired[Count]
    frozen_dtype: Literal["float32", "bfloat16", "float16"]
    precision: str
    batch_size: Count | None
    batch_tokens: Count | None
    max_length: Count
    workers: Positive
    accumulation: Count
    micro_batch_size: Positive
    steps_per_epoch: Count
    tokens_per_epoch: Count
    supervised_tokens_per_epoch: Count
    sequence_parallel: NotRequired[Positive]
    chunk_tokens: NotRequired[Count]
    gpu: NotRequired[bool]
    memory: NotRequired[dict[str, Number]]
    save: NotRequired[_Save | None]


class _Lost(TypedDict):
    count: Count
    first: list[tuple[str, str]]


class _Source(TypedDict):
    path: str
    format: str
    rows: Count
    kept: Count
    unreadable: dict[str, _Lost]
    dropped: dict[str, _Lost]
    truncated: Count
    chunked: Count
    tokens: Count
    supervised_tokens: Count
    lengths: dict[str, Number]


class _Data(TypedDict):
    """The keys of data.json that are read."""

    tokens: str
    template: str | None
    sources: list[_Source]


class _Git(TypedDict):
    commit: NotRequired[str]


class _Environment(TypedDict):
    tailor: NotRequired[str]
    python: NotRequired[str]
    packages: NotRequired[dict[str, str]]
    hardware: NotRequired[dict[str, Any]]
    git: NotRequired[_Git | None]


class _Answer(TypedDict):
    prompt: str
    answer: str
    reference: str | None
    exact: bool


PLAN_FILE = JsonFile(
    _Plan,
    "restore the file from a copy of the run, or train again with another save.to; the run needs its plan",
)
DATA_FILE = JsonFile(
    _Data, "remove {file}: only the data table of reports and the tokens of evaluations need it"
)
ENVIRONMENT_FILE = JsonFile(_Environment, "remove {file}: reports and messages then lack the versions")
_ANSWERS = TypeAdapter(_Answer)


def plan(run: Store) -> dict[str, Any]:
    """The plan of a run. StoreError when it is missing, damaged or of a newer format."""
    return PLAN_FILE.read(run, PLAN)


def only_embeds(run: Store) -> bool:
    """Whether the run trains embeddings alone, so that its model does not generate. False if its plan does not say."""
    if not run.exists(PLAN) or plan(run)["method"]["name"] not in METHODS:
        return False
    embedding = planned_method(run).embedding
    return embedding is not None and not embedding.generates


def ranks(run: Store) -> bool:
    """Whether the run trains a reranker. False if its plan does not say."""
    if not run.exists(PLAN) or plan(run)["method"]["name"] not in METHODS:
        return False
    return planned_method(run).ranked_passages is not None


def plan_if_written(run: Store) -> dict[str, Any]:
    """The plan of a run, or an empty dict when the run ended before writing it."""
    return plan(run) if run.exists(PLAN) else {}


def data_report(run: Store) -> dict[str, Any]:
    """The data report of a run, or an empty dict when the run ended before writing it."""
    return DATA_FILE.read(run, DATA_REPORT) if run.exists(DATA_REPORT) else {}


def environment(run: Store) -> dict[str, Any]:
    """The environment of a run, or an empty dict when the run ended before writing it."""
    return ENVIRONMENT_FILE.read(run, ENVIRONMENT) if run.exists(ENVIRONMENT) else {}


def planned_model(run: Store) -> Model:
    """The `model` section of a run's plan. StoreError when it is not valid."""
    try:
        return Model.model_validate(plan(run)["model"])
    except ValidationError as error:
        raise _invalid(run, "model", error) from None


def planned_method(run: Store) -> MethodSection:
    """The `method` section of a run's plan. StoreError when it is not valid, or the method is not installed."""
    values = plan(run)["method"]
    if values["name"] not in METHODS:
        raise StoreError(
            f"the run at {run.url} was trained with the method {values['name']}, which is not installed",
            hint="install the package that registers it",
        )
    try:
        return method_of(values)
    except ValidationError as error:
        raise _invalid(run, "method", error) from None


def answers(run: Store, when: str) -> list[dict[str, Any]]:
    """The records of the answers generated `before` or `after` training; empty when there are none."""
    file = GENERATED[when]
    return lines(run.read_text(file), run.url_of(file), _ANSWERS) if run.exists(file) else []


def _invalid(run: Store, section: str, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in (section, *first["loc"]))
    return StoreError(
        f"{run.url_of(PLAN)} is damaged: {where}: {first['msg']}",
        hint=PLAN_FILE.hint.format(file="", folder=""),
    )
