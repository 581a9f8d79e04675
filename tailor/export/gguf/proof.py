"""Compares a GGUF file, opened by llama.cpp, with the model in transformers from which it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailor import machine
from tailor.artifacts.load import Loaded, load_run
from tailor.artifacts.verify import TEXTS, Figures, Totals, logits_of, rows_of
from tailor.errors import ModelError
from tailor.evaluate.generation import before_stop, generate
from tailor.export import probes
from tailor.export.gguf import vocabulary
from tailor.export.gguf.distance import READ, distance_of, far_logits
from tailor.export.gguf.llama_cpp import GgufModel, opened
from tailor.export.gguf.types import GgufType
from tailor.store import Store

NEW_TOKENS = 24
"""Length of the compared greedy answers."""
TIE = 1e-3
"""Two tokens whose logits differ by less may change their order between two programs that compute in float32."""
FAR = 10
"""Factor of the limit at a large distance: the angles of positions are rounded to float32 too, and there are few tokens."""
LENGTH = 64
"""Tokens of a row whose logits are compared."""


@dataclass(frozen=True)
class Proof:
    """What was measured. texts, answers: how many were compared. equal: the number of equal greedy answers. reach: the
    distance of positions that was compared, in tokens; None if none was. adds_bos: whether llama.cpp adds the BOS of the file to a prompt."""

    figures: Figures
    limit: float
    reach: int | None
    adds_bos: bool
    texts: int
    answers: int
    equal: int
    stop_tokens: list[str]

    def line(self) -> str:
        """The result, for the user."""
        one = self.figures
        far = f", also {self.reach} positions apart" if self.reach is not None else ""
        return (
            f"opened by llama.cpp: token ids of {self.texts} texts equal; on {one.rows}, {one.tokens} tokens: KL {one.kl:.2e} "
            f"nats per token (limit {self.limit:.1e}), top-1 agreement {one.top1:.1%}{far}; {self.equal} of {self.answers} greedy answers "
            f"equal; stops at {' '.join(self.stop_tokens)}"
        )

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "limit": self.limit,
            "reach": self.reach,
            "texts": self.texts,
            "greedy_answers": self.answers,
            "equal_answers": self.equal,
        }
        return {**values, "stop_tokens": self.stop_tokens, **self.figures.as_dict()}


def prove(file: Path, model: Path, run: Store, kind: GgufType) -> Proof:
    """Compare `file` with the model in the folder `model`. ModelError when they differ by more than the type allows.

    The chat template, the token ids of texts and conversations, and the stop tokens must be equal. So must greedy answers in
    f32; other types report how many are.
    """
    require_memory(model)
    loaded = load_run(str(model), "cpu")
    loaded.model.float()
    with opened(file) as gguf:
        texts = vocabulary.compare(gguf, loaded.tokenizer, loaded.stop_ids)
        vocabulary.require_stops(gguf, loaded.tokenizer, loaded.stop_ids)
        figures = _logits(gguf, loaded, model, run)
        if not figures.kl <= kind.limit:
            raise vocabulary.refused(
                f"its logits differ from the model's: KL {figures.kl:.2e} nats per token (limit of {kind.name} {kind.limit:.1e}), "
                f"top-1 agreement {figures.top1:.1%}, |Δlogit| up to {figures.max_difference:.2e}",
                "choose a --type with more bits",
            )
        reach = _reach(gguf, loaded, model, run, kind)
        answers, equal = _answers(gguf, loaded, exact=kind.name == "f32")
    stops = [loaded.tokenizer.token(token) for token in loaded.stop_ids]
    return Proof(figures, kind.limit, reach, gguf.adds_bos, texts, answers, equal, stops)


def require_memory(model: Path) -> None:
    """ModelError when the model does not fit into memory twice: in float32, and as a file."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    if 3 * size > machine.memory_bytes():
        raise ModelError(
            f"comparing the GGUF file with the model needs {3 * size / 2**30:.0f} GiB of memory, but only "
            f"{machine.memory_bytes() / 2**30:.0f} GiB are available",
            hint="export on a machine with more memory",
        )


def _logits(gguf: GgufModel, loaded: Loaded, model: Path, run: Store) -> Figures:
    rows, what = rows_of(model, run)
    rows = [row[:LENGTH] for row in rows]
    totals = Totals()
    for row, ours in zip(
        rows, logits_of(loaded.model, rows, torch.device("cpu"), shorten=False), strict=True
    ):
        theirs = gguf.logits(row)
        if theirs.shape != ours.shape:
            raise vocabulary.refused(
                f"it has {theirs.shape[1]} tokens in its vocabulary, the model {ours.shape[1]}"
            )
        totals.add(ours, theirs)
    return totals.figures(what)


def _reach(gguf: GgufModel, loaded: Loaded, model: Path, run: Store, kind: GgufType) -> int | None:
    """The distance at which logits are equal; None if it cannot be compared. ModelError when they differ."""
    distance = distance_of(loaded.model.config)
    rows, _ = rows_of(model, run)
    rows = [row for row in rows if len(row) > READ]
    if distance is None or not rows:
        return None
    before, after = rows[0][:READ], rows[0][READ : 2 * READ]
    totals = Totals()
    totals.add(far_logits(loaded.model, before, after, distance), gguf.far_logits(before, after, distance))
    figures = totals.figures("")
    limit = FAR * kind.limit
    if not figures.kl <= limit:
        raise vocabulary.refused(
            f"its logits differ {distance} positions apart: KL {figures.kl:.2e} nats per token (limit {limit:.1e}); it has another RoPE",
            "see whether llama.cpp supports the model's rope_parameters, and give a newer checkout with --llama-cpp",
        )
    return distance


def _answers(gguf: GgufModel, loaded: Loaded, *, exact: bool) -> tuple[int, int]:
    """The numbers of compared and of equal greedy answers. ModelError for one that differs, if they must be `exact`."""
    tokenizer = loaded.tokenizer
    if tokenizer.template is None:
        prompts = [tokenizer.encode_prompt(text) for text in TEXTS]
    else:
        chosen = (*probes.TURNS[:2], *probes.SYSTEM[:1])
        texts = [text for probe in chosen if (text := probes.rendered(tokenizer, probe)) is not None]
        prompts = [tokenizer.encode(text) for text in texts]
    equal = 0
    for prompt in prompts:
        (ours,) = generate(
            loaded.model,
            [prompt],
            max_new_tokens=NEW_TOKENS,
            stop_ids=loaded.stop_ids,
            batch_size=1,
            pad_id=loaded.pad_id,
        )
        # A token at which only llama.cpp stops is a part of its answer, so that the answers differ.
        theirs, stop = gguf.answer(prompt, NEW_TOKENS)
        if stop is not None and stop not in loaded.stop_ids:
            theirs = [*theirs, stop]
        theirs = before_stop(theirs, loaded.stop_ids)
        if ours == theirs:
            equal += 1
        elif exact and not _tied(loaded, prompt, ours, theirs):
            raise vocabulary.refused(
                f"greedy answers differ: {tokenizer.decode(theirs)[:60]!r} instead of {tokenizer.decode(ours)[:60]!r}"
            )
    return len(prompts), equal


def _tied(loaded: Loaded, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Whether the model has (nearly) the same logit for the first two tokens that differ."""
    at = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return False
    with torch.no_grad():
        ids = torch.tensor([prompt + ours[:at]])  # [1, T]
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0, -1].float()  # [V]
    return bool((logits[ours[at]] - logits[theirs[at]]).abs() < TIE)
