"""An adapter in PEFT's files, as changes of single tensors of its base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from tailor.artifacts.tensors import Reader
from tailor.errors import ModelError
from tailor.layout import ADAPTER_WEIGHTS
from tailor.models.adapter_files import check_init, check_weights, read_config
from tailor.spec.adapter_kinds import KINDS, known

PREFIX = "base_model.model."
Self = TypeVar("Self", bound="SavedAdapter")


class SavedAdapter(ABC):
    """The updates of an adapter by module of the base. Use it as a context manager. ModelError for unknown kinds."""

    updates: Mapping[str, Any]
    """Module of the base -> its update."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.config: dict[str, Any] = read_config(folder)
        kind = known(self.config.get("peft_type"))
        if kind is None:
            raise ModelError(
                f"the adapter at {url} is of type {self.config.get('peft_type')}; only "
                f"{', '.join(kind.label for kind in KINDS.values())} adapters can be merged"
            )
        self.kind = kind
        check_init(self.config, url)
        check_weights(folder, url)
        self.reader = Reader([folder / ADAPTER_WEIGHTS])
        self.updates = {}
        self.replaced: dict[str, str] = {}
        """Tensor of the base -> the adapter's tensor that replaces it (`modules_to_save`, trained in full)."""
        self.rows: dict[str, str] = {}
        """Embedding or head of the base -> the adapter's tensor with new values of some of its rows (`model.add_tokens`)."""
        try:
            self._sort()
        except BaseException:
            self.reader.__exit__(None, None, None)
            raise

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.__exit__(kind, error, trace)

    @abstractmethod
    def _sort(self) -> None:
        """Assign each tensor of the adapter to an update or to a replaced tensor."""

    @abstractmethod
    def merged(self, module: str, weight: torch.Tensor, *, transposed: bool, name: str) -> torch.Tensor:
        """The module's weight with its update applied, float32 in the layout of `weight`.

        weight: float32 [out, in], or [in, out] if `transposed`. name: of the weight, for messages. ModelError when the
        shapes differ.
        """

    def merged_bias(self, module: str, bias: torch.Tensor, name: str) -> torch.Tensor:
        """The module's bias with its update applied, float32 [out]. Only for kinds with `scales_bias`."""
        raise NotImplementedError

    def changed(self) -> Iterator[str]:
        """The names of all tensors of the base that the adapter changes, except biases."""
        yield from self.replaced
        yield from self.rows
        yield from (f"{module}.weight" for module in self.updates)

    def with_rows(self, name: str, weight: torch.Tensor, size: int) -> torch.Tensor:
        """The embedding or head `name` with the trained rows, [size, H]. weight: [V, H] of the base, V <= size.

        ModelError when the rows do not fit.
        """
        ids, rows = self.row_ids(name), self.reader.read(self.rows[name])
        known = len(weight)
        if rows.shape != (len(ids), weight.shape[1]) or not set(range(known, size)) <= set(ids):
            raise ModelError(
                f"the adapter at {self.url} does not fit its base: its rows for {name} have the shape {tuple(rows.shape)}",
                hint="the base must be the model that the adapter was trained on",
            )
        grown = torch.cat([weight, weight.new_zeros(size - known, weight.shape[1])])  # [size, H]
        grown[ids] = rows.to(grown.dtype)
        return grown

    def row_ids(self, name: str) -> list[int]:
        """Ids of the tokens whose rows of the embedding or head `name` are trained."""
        named = self.config.get("trainable_token_indices") or {}
        module = name.removesuffix(".weight")
        if isinstance(named, list):
            return named
        found = next((ids for key, ids in named.items() if f".{module}".endswith(f".{key}")), None)
        if found is None:
            raise ModelError(
                f"the adapter at {self.url} is damaged: trainable_token_indices does not name {module}",
                hint="copy the adapter again",
            )
        return found
