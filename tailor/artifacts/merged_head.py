"""The scoring head of a merged reranker: the adapter's, because the base has none, or another one.

The merged files name their tensors as transformers' class does, because those of a base may lack the prefix of the class
(`encoder…` for `bert.encoder…`).
"""

from __future__ import annotations

from tailor.artifacts.base_model import Structure
from tailor.artifacts.inputs import Source
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import Reader
from tailor.errors import ModelError
from tailor.models import own_code, scoring_head


def head_of(structure: Structure, adapter: SavedAdapter, source: Source) -> set[str]:
    """Names of the head's weights; empty for a model that is no reranker. ModelError if the adapter lacks one of them."""
    if not scoring_head.is_scorer(structure.model):
        return set()
    head = scoring_head.weights_of(structure.model)
    if lacking := sorted(head - adapter.replaced.keys()):
        raise ModelError(
            f"the adapter at {source.url} lacks {lacking[0]} of the scoring head",
            hint="only an adapter that was trained with method rerank can be merged into a reranker",
        )
    return head


def kept_names(structure: Structure, head: set[str], reader: Reader, source: Source) -> dict[str, str]:
    """Name of each tensor of the base's files that the merged model keeps -> its name there.

    A reranker keeps neither what is replaced by its own head, nor the base's output head.
    """
    if not head:
        return {name: name for name in reader}
    found = {stored: name for name in structure.parameters if (stored := structure.stored_name(name, reader))}
    generating = Structure.of(source.weights, trust_remote_code=own_code.granted(source.spec))
    others = {generating.stored_name(name, reader) for name in generating.parameters} - found.keys()
    replaced = {structure.stored_name(name, reader) for name in head}
    return {name: found.get(name, name) for name in reader if name not in others | replaced}
