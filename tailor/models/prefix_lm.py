"""Generation as a prefix LM: prompts are read in both directions, answers causally.

(Raffel et al. 2020, arXiv 1910.10683.) A model that was trained in this way has `attention.json` beside its weights. Everything that loads the model enables it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tailor.layout import GENERATIVE_ATTENTION
from tailor.models import segments
from tailor.models.decoder import decoder_of
from tailor.store.json_files import JsonFile, made

ATTRIBUTE = "tailor_prefix_lm"
"""Attribute of a transformers model that generates as a prefix LM."""


@dataclass(frozen=True)
class GenerativeAttention:
    """The contents of `attention.json`."""

    generative_attention: Literal["prefix_lm"]


FILE = JsonFile(GenerativeAttention, "copy the artifact again")


def enable(base: Any) -> None:
    """Make a transformers model a prefix LM, for training, likelihoods and generation.

    ValueError if no rule describes its attention, which the check before training reports.
    """
    segments.learn_rules(base)
    setattr(base, ATTRIBUTE, True)


def is_enabled(base: Any) -> bool:
    return bool(getattr(base, ATTRIBUTE, False))


@contextmanager
def disabled(base: Any) -> Iterator[None]:
    """Context in which the model is causal, as before training."""
    was_enabled = is_enabled(base)
    setattr(base, ATTRIBUTE, False)
    try:
        yield
    finally:
        setattr(base, ATTRIBUTE, was_enabled)


def write(folder: Path) -> None:
    """Write `attention.json` into the folder of an artifact."""
    (folder / GENERATIVE_ATTENTION).write_text(FILE.text(asdict(GenerativeAttention("prefix_lm"))))


def is_saved(folder: Path, url: str) -> bool:
    """Whether the model in `folder` is a prefix LM. StoreError if the file is damaged. url: for messages."""
    path = folder / GENERATIVE_ATTENTION
    if not path.is_file():
        return False
    return (
        made(GenerativeAttention, FILE.read_path(path, f"{url}/{path.name}")).generative_attention
        == "prefix_lm"
    )


@contextmanager
def reading_prompts(base: Any) -> Iterator[None]:
    """Context in which a forward pass that starts a KV cache reads its tokens as a prompt, if the model is a prefix LM."""
    if not is_enabled(base):
        yield
        return

    def both_ways(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = options.get("past_key_values")
        starts = cache is None or cache.get_seq_length() == 0
        return arguments, {**options, "is_causal": False} if starts else options

    hook = decoder_of(base).register_forward_pre_hook(both_ways, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
