"""The requests of OpenAI's HTTP interface that the server reads. Unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)


def _described(what: str) -> WrapValidator:
    """One error for a field of several types, where pydantic has one per type. what: the field must be."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {what}") from None

    return WrapValidator(check)


CONFIG = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
"""strict: numbers and truth values in texts are refused, as with OpenAI."""
Text = Annotated[str, Field(max_length=1 << 24)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
MAX_STOPS = 16
MAX_CHOICES = 16
MAX_INPUTS = 2048
"""Texts of one request, as with OpenAI."""
MAX_TOP = 20

DEFAULT_MAX_TOKENS = 256
"""As `tailor generate` without --max-new-tokens."""


class Request(BaseModel):
    """Fields of every request. user: is accepted and not used."""

    model_config = CONFIG
    model: str
    user: str | None = None


class StreamOptions(BaseModel):
    model_config = CONFIG
    include_usage: bool = False


class Sampling(Request):
    """How answers are generated. The defaults are those of `tailor generate`: greedy, up to 256 tokens."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[
        Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None,
        _described(f"a text, or at most {MAX_STOPS} of them, with 1 to 1000 characters each"),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    """Add `token_ids` to each choice of a response that is no stream, as vLLM does."""
    # Fields that change answers are accepted at the value that changes nothing.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _streams(self) -> Sampling:
        if self.return_token_ids and self.stream:
            raise ValueError("return_token_ids is not supported with stream")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream")
        return self


class ResponseFormat(BaseModel):
    model_config = CONFIG
    type: Literal["text"]


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top(self) -> int | None:
        """Number of alternatives per token; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs has no effect without logprobs")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions. prompt: one text, or one list of token ids, or several of them."""

    prompt: Annotated[
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)],
        _described("a text, a list of token ids, or a list of texts or of such lists, none of them empty"),
    ]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        whole = isinstance(self.prompt[0], int)
        return [self.prompt] if whole else list(self.prompt)  # type: ignore[list-item, arg-type]


class EmbeddingsRequest(Request):
    """POST /v1/embeddings. instruction: of queries, as in training; OpenAI's interface does not have it."""

    input: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)],
        _described(f"a text, or a list of 1 to {MAX_INPUTS} texts; token ids are not supported"),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    instruction: Text | None = None
    truncate: bool = False
    """Cut what the model does not read off too long texts, as text-embeddings-inference does; otherwise they are refused."""

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class RerankRequest(Request):
    """POST /v1/rerank, the interface of Cohere and Jina."""

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    truncate: bool = False
    """As for embeddings."""
