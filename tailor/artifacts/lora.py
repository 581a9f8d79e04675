"""Reads a LoRA adapter from PEFT's files, as updates of single tensors of its base.

An update of rank r is W' = W + s·B·A with A [r, in], B [out, r] and s = alpha/r (alpha/√r with rsLoRA). DoRA
(arXiv 2402.09353) scales each row to a trained length m: W' = m · (W + s·B·A) / ‖W + s·B·A‖.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tailor.artifacts.tensors import Reader
from tailor.errors import ModelError
from tailor.layout import ADAPTER_WEIGHTS
from tailor.models.adapter_files import check_weights, read_config

PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"
"""End of the name of PEFT's tensor with trained rows of an embedding or a head (`trainable_token_indices`)."""
_A, _B = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")
_MAGNITUDE = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")


@dataclass(frozen=True)
class Update:
    """The update of one module: the names of its tensors A (down), B (up) and DoRA magnitude, and its scale s."""

    down: str
    up: str
    magnitude: str | None
    scale: float


class LoraAdapter:
    """The updates of an adapter by module of the base. Use it as a context manager.

    ModelError for anything but LoRA, rsLoRA and DoRA adapters.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.config: dict[str, Any] = read_config(folder)
        if self.config.get("peft_type") != "LORA":
            raise ModelError(
                f"the adapter at {url} is of type {self.config.get('peft_type')}; only LoRA adapters can be merged or averaged"
            )
        check_weights(folder, url)
        self.reader = Reader([folder / ADAPTER_WEIGHTS])
        self.updates: dict[str, Update] = {}
        """Module of the base -> its update."""
        self.replaced: dict[str, str] = {}
        """Tensor of the base -> the adapter's tensor that replaces it (`modules_to_save`, trained in full)."""
        self.rows: dict[str, str] = {}
        """Embedding or head of the base -> the adapter's tensor with new values of some of its rows (`model.add_tokens`)."""
        try:
            self._sort()
        except BaseException:
            self.reader.__exit__(None, None, None)
            raise

    def __enter__(self) -> LoraAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.__exit__(kind, error, trace)

    @property
    def dora(self) -> bool:
        return any(update.magnitude is not None for update in self.updates.values())

    def rank(self, module: str) -> int:
        return self.reader.about(self.updates[module].down).shape[0]

    def product(self, module: str) -> torch.Tensor:
        """The update s·B·A of a module, float32 [out, in]."""
        down, up = self.factors(module)
        return up @ down

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors A [r, in] and s·B [out, r] of a module, in float32."""
        update = self.updates[module]
        down, up = self.reader.read(update.down).float(), self.reader.read(update.up).float()
        return down, up * update.scale

    def merged(self, module: str, weight: torch.Tensor, *, transposed: bool, name: str) -> torch.Tensor:
        """The module's weight with its update applied, float32 in the layout of `weight`.

        weight: float32 [out, in], or [in, out] if `transposed`. name: of the weight, for messages. ModelError when the
        shapes differ.
        """
        oriented = weight.T if transposed else weight
        product = self.product(module)
        if weight.ndim != 2 or product.shape != oriented.shape:
            raise ModelError(
                f"the adapter at {self.url} does not fit its base: its update of {module} has the shape "
                f"{tuple(product.shape)}, but {name} has the shape {tuple(oriented.shape)}",
                hint="the base must be the model that the adapter was trained on",
            )
        result = oriented + product  # [out, in]
        magnitude = self.updates[module].magnitude
        if magnitude is not None:
            norms = self.reader.read(magnitude).float().reshape(-1, 1)  # [out, 1]
            result = norms * (result / torch.linalg.norm(result, dim=1, keepdim=True))
        return result.T if transposed else result

    def _sort(self) -> None:
        """Assign each tensor of the adapter to an update or to a replaced tensor."""
        parts: dict[str, dict[str, str]] = {}
        for name in self.reader:
            bare = name.removeprefix(PREFIX)
            if bare.endswith(ROWS):
                self.rows[f"{bare.removesuffix(ROWS)}.weight"] = name
                continue
            for part, endings in (("down", _A), ("up", _B), ("magnitude", _MAGNITUDE)):
                ending = next((end for end in endings if bare.endswith(end)), None)
                if ending is not None:
                    parts.setdefault(bare.removesuffix(ending), {})[part] = name
                    break
            else:
                if "lora_" in bare or "trainable_tokens" in bare or bare == name:
                    raise ModelError(
                        f"the adapter at {self.url} has the tensor {name}, which cannot be merged or averaged",
                        hint="supported are LoRA, rsLoRA and DoRA of linear and embedding layers, and modules_to_save",
                    )
                self.replaced[bare.replace(".base_layer.", ".")] = name
        for module, found in parts.items():
            if not {"down", "up"} <= found.keys():
                raise ModelError(
                    f"the adapter at {self.url} is damaged: {module} has only one of the tensors lora_A and lora_B"
                )
            rank = self.reader.about(found["down"]).shape[0]
            self.updates[module] = Update(
                found["down"], found["up"], found.get("magnitude"), self._scale(module, rank)
            )

    def _scale(self, module: str, rank: int) -> float:
        """The scale s, computed as in PEFT."""
        alpha = float(self.config["lora_alpha"])
        for pattern, value in (
            self.config.get("alpha_pattern") or {}
        ).items():  # the first matching pattern counts, as in PEFT
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

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

    def changed(self) -> Iterator[str]:
        """The names of all tensors of the base that the adapter changes."""
        yield from self.replaced
        yield from self.rows
        yield from (f"{module}.weight" for module in self.updates)
