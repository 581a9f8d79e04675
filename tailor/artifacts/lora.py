"""Reads a LoRA adapter from PEFT's files, as updates of single tensors of its base.

An update of rank r is W' = W + s·B·A with A [r, in], B [out, r] and s = alpha/r (alpha/√r with rsLoRA). DoRA
(arXiv 2402.09353) scales each row to a trained length m: W' = m · (W + s·B·A) / ‖W + s·B·A‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tailor.artifacts import stacked
from tailor.artifacts.lora_settings import require_update
from tailor.artifacts.saved_adapter import PREFIX, SavedAdapter
from tailor.errors import ModelError
from tailor.models.experts.stacks import Stack
from tailor.spec.adapter import matching

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
    experts: int | None = None
    """For the experts E of a layer in one tensor: their number. A is [E · r, in], B is [out, r · E]. None for a module."""
    transposed: bool = False
    """Whether such a tensor is [E, in, out] and not [E, out, in]."""


class LoraAdapter(SavedAdapter):
    """The updates of a LoRA, rsLoRA or DoRA adapter."""

    updates: dict[str, Update]

    @property
    def dora(self) -> bool:
        return any(update.magnitude is not None for update in self.updates.values())

    def __init__(self, folder: Path, url: str, stacks: Callable[[], Sequence[Stack]] | None = None) -> None:
        """stacks: reads those of the base. Without it, an update of a stack is named like PEFT's wrapper in the files."""
        self._stacks = stacks
        super().__init__(folder, url)

    def rank(self, module: str) -> int:
        update = self.updates[module]
        return self.reader.about(update.down).shape[0] // (update.experts or 1)

    def changed(self) -> Iterator[str]:
        yield from self.replaced
        yield from self.rows
        yield from (name if update.experts else f"{name}.weight" for name, update in self.updates.items())

    def product(self, module: str) -> torch.Tensor:
        """The update s·B·A of a module, float32 [out, in]; of a stack [E, out, in], or [E, in, out] if it is transposed."""
        down, up = self.factors(module)
        update = self.updates[module]
        if update.experts is None:
            return up @ down
        product = up.permute(2, 0, 1) @ down  # [E, out, in]
        return product.transpose(1, 2) if update.transposed else product

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors A [r, in] and s·B [out, r] of a module, in float32; of a stack [E, r, in] and [out, r, E]."""
        update = self.updates[module]
        down, up = self.reader.read(update.down).float(), self.reader.read(update.up).float()
        if update.experts is not None:
            down = down.view(update.experts, -1, down.shape[1])
            up = up.view(len(up), -1, update.experts)
        return down, up * update.scale

    def merged(self, module: str, weight: torch.Tensor, *, transposed: bool, name: str) -> torch.Tensor:
        oriented = weight.T if transposed else weight  # of a stack: as it is
        product = self.product(module)
        if product.ndim != weight.ndim or product.shape != oriented.shape:
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
        require_update(self.config, self.url)
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
        wrappers = {module for module in parts if stacked.is_wrapper(module, parts, self.config)}
        for module, found in parts.items():
            if not {"down", "up"} <= found.keys():
                raise ModelError(
                    f"the adapter at {self.url} is damaged: {module} has only one of the tensors lora_A and lora_B",
                    hint="copy the adapter again",
                )
            if module not in wrappers:
                rank = self.reader.about(found["down"]).shape[0]
                scale = self._scale(module, rank)
                self.updates[module] = Update(found["down"], found["up"], found.get("magnitude"), scale)
        if not wrappers and (absent := stacked.targets(self.config)):
            raise ModelError(
                f"the adapter at {self.url} has target_parameters, so it cannot be merged or averaged: its file has no update of "
                f"{absent[0]}",
                hint="copy the adapter again",
            )
        known = self._stacks() if wrappers and self._stacks is not None else None
        for module in sorted(wrappers):
            down, up = parts[module]["down"], parts[module]["up"]
            rows = self.reader.about(down).shape[0]
            name, experts, transposed = stacked.identify(module, wrappers, rows, self.config, known, self.url)
            scale = self._scale(name, rows // experts)
            self.updates[name] = Update(down, up, None, scale, experts, transposed)

    def _scale(self, module: str, rank: int) -> float:
        """The scale s, computed as in PEFT."""
        patterns = self.config.get("alpha_pattern") or {}
        alpha = float(matching(patterns, module, self.config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
