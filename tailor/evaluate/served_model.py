"""Computes the batches of an evaluation with a served model: prompts are sent as token ids, and answers come as token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tailor.errors import ModelError
from tailor.evaluate.batches import GENERATE, EvaluationBatch, ModelRef, Result, Runner
from tailor.evaluate.chat_endpoint import ChatEndpoint, EndpointError
from tailor.spec.suite import Decoding

REQUESTS = 16
"""Requests at the same time."""


def served_runner(endpoint: ChatEndpoint) -> Runner:
    """A runner whose answers come from the model of an endpoint, which must have vLLM's `return_token_ids`, as `tailor serve` has.

    Greedy answers are those of the same model in this process. Sampled ones depend on `decoding.seed` and on the row, but
    are other samples. ModelError when the server does not answer.
    """

    def run(
        models: Sequence[ModelRef], decoding: Decoding, batches: Iterable[EvaluationBatch]
    ) -> Iterator[tuple[int, Result]]:
        with ThreadPoolExecutor(REQUESTS) as pool:
            for index, batch in enumerate(batches):
                pairs = zip(batch.items, batch.inputs, strict=True)
                jobs = [pool.submit(_answer, endpoint, decoding, item, prompt) for item, prompt in pairs]
                yield index, [job.result() for job in jobs]

    return run


def require_generation(task: str, batches: Iterable[EvaluationBatch]) -> None:
    """ModelError for a task that needs more of a model than answers to prompts. task: its name, for the message."""
    if any(batch.computation is not GENERATE for batch in batches):
        raise ModelError(
            f"the task {task} needs more of a model than its answers, so it cannot use a served one",
            hint="leave the task out, or evaluate the run without --url",
        )


def _answer(endpoint: ChatEndpoint, decoding: Decoding, item: int, prompt: Sequence[int]) -> list[int]:
    """The tokens of an answer. ModelError when the server does not give them."""
    digest = hashlib.sha256(f"{decoding.seed} {item}".encode()).digest()
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": list(prompt),
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": int.from_bytes(digest[:4], "little"),
        "return_token_ids": True,
    }
    try:
        content = endpoint.post("completions", json.dumps(body))
    except EndpointError as error:
        raise ModelError(
            f"the server at {endpoint.base_url} did not answer: {error}",
            hint="run the same command again: it continues after the finished batches",
        ) from None
    try:
        choice = json.loads(content)["choices"][0]
        ids = choice["token_ids"]
        if not (isinstance(ids, list) and all(type(token) is int for token in ids)):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ModelError(
            f"the server at {endpoint.base_url} does not return token ids",
            hint="serve the model with `tailor serve` or vLLM, which have `return_token_ids`",
        ) from None
    return ids
