"""`model.add_tokens`: rows for new tokens in the embedding and the output head.

A row starts as the mean of the rows of the token's pieces, the ids that the base's tokenizer gives for its text. The tables
grow only if they have no unused rows at the end, which many models have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.spec.model import Model

HINT = "remove model.add_tokens, or choose another base model"


def new_tokens(spec: Model) -> dict[int, list[int]]:
    """Id of each new token -> the ids of its pieces. ModelError if the tokenizer cannot take the tokens."""
    base = load_tokenizer(spec.path, spec.revision)
    grown = base.with_tokens(spec.add_tokens)
    return {grown.encode(token)[0]: base.encode(token) for token in spec.add_tokens}


def add_rows(network: Any, spec: Model) -> None:
    """Give the network rows for the new tokens. ModelError if its tables cannot take them."""
    pieces = new_tokens(spec)
    known = network.get_input_embeddings().weight.shape[0]
    _check(network, known)
    size = max(known, *(token + 1 for token in pieces))
    if size > known:
        network.resize_token_embeddings(size, mean_resizing=False)
    for table in _tables(network):
        rows = [table[torch.tensor(ids, device=table.device)].float().mean(0) for ids in pieces.values()]
        with torch.no_grad():
            table[torch.tensor(list(pieces), device=table.device)] = torch.stack(rows).to(table.dtype)


def trained_rows(network: Any, spec: Model) -> dict[str, list[int]]:
    """Names of the modules whose rows an adapter trains -> the ids of the new tokens, for PEFT.

    A head that is tied to the embedding is not named: PEFT trains it with the embedding. ModelError if PEFT cannot train it.
    """
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"model.add_tokens: the output head of {type(network).__name__} has a bias, which PEFT would leave out",
            hint="train all weights (no model.adapter)",
        )
    names = {id(module): name for name, module in network.named_modules()}
    tied = head.weight is embedding.weight
    ids = list(new_tokens(spec))
    return {names[id(module)]: ids for module in ((embedding,) if tied else (embedding, head))}


def _tables(network: Any) -> list[torch.Tensor]:
    """The embedding, and the weight and bias of the head. A tied weight is there once."""
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    parts = [embedding.weight, head.weight, getattr(head, "bias", None)]
    return list({id(part): part for part in parts if part is not None}.values())


def _check(network: Any, size: int) -> None:
    """ModelError for tables of other kinds than a plain embedding and a linear head, and for further tables of that size."""
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    for what, module, kind in (("embedding", embedding, nn.Embedding), ("output head", head, nn.Linear)):
        weight = getattr(module, "weight", None)
        if not isinstance(module, kind) or weight is None or not weight.is_floating_point():
            raise ModelError(
                f"model.add_tokens: the {what} of {type(network).__name__} ({type(module).__name__}) cannot take new rows",
                hint="remove model.quantize" if "bit" in type(module).__name__ else HINT,
            )
    if head.weight.shape[0] != size:
        raise ModelError(
            f"model.add_tokens: the embedding of {type(network).__name__} has {size:,} rows, and its output head "
            f"{head.weight.shape[0]:,}",
            hint=HINT,
        )
    others = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and module is not embedding and module.num_embeddings == size
    ]
    if others:
        raise ModelError(
            f"model.add_tokens: {type(network).__name__} has another table of tokens, {others[0]}, which cannot take new rows",
            hint=HINT,
        )
