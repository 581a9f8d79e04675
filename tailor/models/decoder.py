"""The decoder of a transformers model: the part between its token ids and its last hidden states."""

from __future__ import annotations

from typing import Any


def decoder_of(base: Any) -> Any:
    """The module that gives the last hidden states of a causal language model."""
    decoder = base.get_decoder()
    # Llama 4's text model names a base that it does not have, and then returns itself, with its output head.
    return base.model if decoder is base else decoder
