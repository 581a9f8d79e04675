"""Continuous batching: prompts are answered together, and each answer is the one that its prompt gets alone.

Kernels choose the order of their sums by the shape of a batch, so in static batches the last bits of a prompt's logits
depend on the other prompts, and nearly equal tokens (in bfloat16 often equal ones) are swapped. Here a prompt is read
alone, and a decoding step always computes `ROWS` rows of one token: rows not in use are padding. Attention runs row by row
over each row's own KV cache. `row_sizes` proves on the loaded model that a row's bits then depend on that row only;
other models (experts, state-space layers, soft caps, beacons) are answered by `generation.generate`. On CPUs, few answers are
computed in `FEW` rows where that is proven to give the same bits.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tailor.evaluate import generation
from tailor.evaluate.generation import Draw, Ids, Sampling
from tailor.models import prefix_lm
from tailor.models import rope as live_rope
from tailor.models.adapters import active_adapters
from tailor.models.attention import stock_attention
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import base_of
from tailor.models.positions import positions_of
from tailor.models.row_attention import attending_by_row
from tailor.plan import experts

ROWS = 16
"""Rows of every decoding step. Another number may change last bits, so it is the same in every command."""
FEW = 4
"""Rows of a step on CPUs with at most this many answers, if they have the same bits as among `ROWS`.

MKL computes float32 matrices of 4 to 16 rows with one kernel, and up to 3 rows with others. One answer in 4 rows takes about
two thirds of the time of 16. GPUs take the same time for both.
"""
_PROBES = (5, 9, 3, 7)
"""Lengths of the prompts of the probe, in tokens."""
_CLOSE = {torch.float32: 1e-3}
_CLOSE_16_BIT = 5e-2
"""Maximum relative difference (L2 norms) to the logits of a plain forward pass that counts as rounding."""

_proven: weakref.WeakKeyDictionary[Any, dict[Any, tuple[int, ...]]] = weakref.WeakKeyDictionary()
"""Model -> active adapter -> `row_sizes`. Adapters of other ranks have matrices of other shapes, and so other kernels."""


@dataclass
class Answer:
    """A prompt that is being answered. draw: how its tokens are sampled; None decodes greedily."""

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    draw: Draw | None = None
    ids: Ids = field(default_factory=list)
    """The tokens so far, without the stop token."""
    logprob: float = 0.0
    """Of the last token, natural logarithm, before temperature and top-p."""
    top: list[tuple[int, float]] = field(default_factory=list)
    """The most likely tokens at the last step with their log-probabilities; empty unless `top_logprobs` asks for them."""
    top_logprobs: int | None = None
    """Number of tokens in `top`; None computes no log-probabilities."""
    finish_reason: str | None = None
    """`stop` after a stop token, `length` after max_new_tokens, None before the end."""
    last: int = -1
    cache: Any = None

    def take(self, logits: torch.Tensor) -> int:
        """Choose the next token from float[V] logits, and note it. Returns the token, also a stop token."""
        scores = logits.float()[None]  # [1, V]
        if self.top_logprobs is not None:
            chances = scores[0].log_softmax(-1)
            values, tokens = chances.topk(self.top_logprobs) if self.top_logprobs else ((), ())
            self.top = [(int(token), float(value)) for token, value in zip(tokens, values, strict=True)]
        if self.draw is not None:
            scores = self.draw(scores, scores)  # type: ignore[arg-type]
        token = int(scores[0].argmax())
        if self.top_logprobs is not None:
            self.logprob = float(chances[token])
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Append a token, and see whether it is the last one."""
        self.last = token
        if token in self.stop_ids:
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) == self.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self.cache = None


class ContinuousBatch:
    """Up to `ROWS` answers of one model. Used inside `decoding`; a model's active adapter must stay the same while it runs."""

    def __init__(self, model: Any, pad_id: int, sizes: Sequence[int]) -> None:
        """sizes: `row_sizes` of the model and its active adapter."""
        self._model, self._pad_id, self._sizes = model, pad_id, sizes
        self._device = next(model.parameters()).device
        self.answers: list[Answer] = []
        """Each has a row."""

    @property
    def has_room(self) -> bool:
        return len(self.answers) < ROWS

    def start(self, answer: Answer) -> None:
        """Read a prompt, alone, and choose the first token. An answer of more tokens takes a row."""
        answer.cache = _new_cache(self._model)
        answer.take(_read(self._model, answer.prompt, answer.cache, self._device))
        if answer.finish_reason is None:
            self.answers.append(answer)

    def step(self) -> list[Answer]:
        """One token more for each answer. Returns the answers that got one; finished ones have left their rows."""
        active = self.answers
        if not active:
            return []
        for answer, logits in zip(active, self._logits(active), strict=False):
            answer.take(logits)
        self.answers = [answer for answer in active if answer.finish_reason is None]
        return active

    def remove(self, answer: Answer) -> None:
        """Free the row of an answer, and its KV cache."""
        answer.cache = None
        self.answers = [other for other in self.answers if other is not answer]

    def _logits(self, answers: Sequence[Answer | None]) -> torch.Tensor:
        """float[rows, V], in any dtype: those of the answers, and padding. None: a row of padding."""
        size = next(size for size in self._sizes if size >= len(answers))
        rows = [*answers, *[None] * (size - len(answers))]
        tokens = [
            (row.last, len(row.prompt) + len(row.ids) - 1) if row else (self._pad_id, 0) for row in rows
        ]
        table = torch.tensor(tokens, device=self._device)  # [rows, 2]
        caches = [row and row.cache for row in rows]
        out = self._model(input_ids=table[:, :1], position_ids=table[:, 1:], use_cache=False, caches=caches)
        logits: torch.Tensor = out.logits[:, -1]
        return logits


@contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Context in which a `ContinuousBatch` of the model may run. The model is restored afterwards."""
    with generation.ready(model), attending_by_row(base_of(model)), torch.no_grad():
        yield


def row_sizes(model: Any) -> tuple[int, ...]:
    """The numbers of rows that give the same bits, in ascending order; none for a model that is not row-invariant.

    Tried once for each adapter of a model, with a few short forward passes.
    """
    base = base_of(model)
    if not _may_be(base):
        return ()
    proven, adapter = _proven.setdefault(base, {}), active_adapters(model)
    if adapter not in proven:
        try:
            with decoding(model):
                proven[adapter] = _proven_sizes(model)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError):
            proven[adapter] = ()
    return proven[adapter]


def _may_be(base: Any) -> bool:
    config = base.config.get_text_config()
    beacons = beacons_of(base)
    return not (
        prefix_lm.is_enabled(base)
        or live_rope.follows_length(base)
        or (beacons is not None and not beacons.off)
        or stock_attention(base) != "sdpa"
        or experts.total(config.to_dict()) > 1
        or getattr(config, "attention_chunk_size", None)
    )


def _proven_sizes(model: Any) -> tuple[int, ...]:
    """`ROWS`, if a row's logits have the same bits in the first and last row, alone and among others, and are right.

    With `FEW` before it, if they have the same bits there.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    # Recurrent layers keep a state in a cache layer of their own type, or in none, and a step has only keys and values.
    if any(
        type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in _new_cache(model).layers
    ):
        return ()
    device, size = next(model.parameters()).device, base_of(model).get_input_embeddings().weight.shape[0]
    # Of the cache layers after a step, beyond the prompt: 1 if each layer has noted the step.
    lengths: set[int] = set()
    short, long, *others = ([(7 * at + length) % size for at in range(length)] for length in _PROBES)

    def logits(rows: int, *prompts: Sequence[int] | None) -> torch.Tensor:
        batch, answers = ContinuousBatch(model, 0, (rows,)), []
        for prompt in prompts:
            answer = Answer(prompt, 2, frozenset(), cache=_new_cache(model)) if prompt is not None else None
            if answer is not None:
                answer.take(_read(model, answer.prompt, answer.cache, device))
            answers.append(answer)
        found = batch._logits(answers)
        for answer in filter(None, answers):
            lengths.update(layer.get_seq_length() - len(answer.prompt) for layer in answer.cache.layers)
        return found

    alone = logits(ROWS, short)[0]
    last = logits(ROWS, *[long] * (ROWS - 1), short)[-1]
    first = logits(ROWS, short, *[long] * (ROWS - 1))[0]
    cache = _new_cache(model)
    token = int(_read(model, short, cache, device).float().argmax())
    plain = (
        model(input_ids=torch.tensor([[token]], device=device), past_key_values=cache).logits[0, -1].float()
    )
    is_close = bool((alone.float() - plain).norm() <= _CLOSE.get(alone.dtype, _CLOSE_16_BIT) * plain.norm())
    if not (torch.equal(alone, first) and torch.equal(alone, last) and is_close and lengths == {1}):
        return ()
    prompts = [short, long, *others]  # FEW different ones
    is_equal = (
        device.type == "cpu"
        and torch.equal(logits(FEW, *prompts), logits(ROWS, *prompts)[:FEW])
        and torch.equal(logits(FEW, short)[0], alone)
        and torch.equal(logits(FEW, *prompts[1:], short)[-1], alone)
    )
    return (FEW, ROWS) if is_equal else (ROWS,)


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=base_of(model).config.get_text_config())


def _read(model: Any, prompt: Sequence[int], cache: Any, device: torch.device) -> torch.Tensor:
    """The logits after a prompt, float[V], which fills its KV cache."""
    ids = torch.tensor([list(prompt)], device=device)
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = out.logits[0, -1]
    return logits


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    pad_id: int,
    sampling: Sampling | None = None,
    numbers: Sequence[int] | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[Ids]:
    """As `generation.generate`, with answers that depend on no other prompt. batch_size: for models without a proof."""
    if not (sizes := row_sizes(model)):
        return generation.generate(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            batch_size=batch_size,
            pad_id=pad_id,
            sampling=sampling,
            numbers=numbers,
            on_token=on_token,
        )
    limit, numbers = positions_of(model), range(len(prompts)) if numbers is None else numbers
    answers = [
        Answer(
            prompt,
            generation.room(limit, len(prompt), max_new_tokens),
            frozenset(stop_ids),
            sampling and sampling.draw([number]),
        )
        for prompt, number in zip(prompts, numbers, strict=True)
    ]
    waiting = deque(answer for answer in answers if len(answer.prompt))
    with decoding(model):
        batch = ContinuousBatch(model, pad_id, sizes)
        while waiting or batch.answers:
            stepped = batch.step()
            while waiting and batch.has_room:
                stepped.append(waiting.popleft())
                batch.start(stepped[-1])
            for answer in stepped if on_token is not None else ():
                on_token(answer.last)  # type: ignore[misc]
    return [answer.ids for answer in answers]
