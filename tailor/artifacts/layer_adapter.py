"""Reads the adapters of other kinds than LoRA from PEFT's files. PEFT itself merges them, one layer at a time."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from tailor.artifacts.saved_adapter import PREFIX, SavedAdapter
from tailor.errors import ModelError
from tailor.spec.adapter import matching

_PROJECTIONS = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}
"""VeRA's random matrices, which all modules share: A [r, in] and B [out, r] of the largest module."""


class LayerAdapter(SavedAdapter):
    """A LoHa, LoKr, OFT, (IA)³ or VeRA adapter."""

    updates: dict[str, dict[str, str]]
    """Module of the base -> its tensors: name in PEFT's layer -> name in the file."""

    def _sort(self) -> None:
        own = re.compile(rf"(.+)\.((?:{self.kind.tensors})(?:\.weight)?)")
        for name in self.reader:
            bare = name.removeprefix(PREFIX)
            if name in _PROJECTIONS.values() and self.kind.peft_type == "VERA":
                continue
            if (found := own.fullmatch(bare)) is not None and bare != name:
                self.updates.setdefault(found[1], {})[found[2]] = name
            elif bare == name or any(
                mark in bare for mark in ("lora_", "hada_", "lokr_", "oft_", "ia3_", "vera_")
            ):
                raise ModelError(
                    f"the adapter at {self.url} has the tensor {name}, which cannot be merged",
                    hint=f"supported are {self.kind.label} of linear layers, and modules_to_save",
                )
            else:
                self.replaced[bare.replace(".base_layer.", ".")] = name
        if self.kind.peft_type == "VERA" and not all(name in self.reader for name in _PROJECTIONS.values()):
            raise ModelError(
                f"the adapter at {self.url} lacks the random matrices vera_A and vera_B",
                hint="save it with PEFT's save_projection=True",
            )

    def merged(self, module: str, weight: torch.Tensor, *, transposed: bool, name: str) -> torch.Tensor:
        oriented = weight.T if transposed else weight
        result = self._merged_layer(module, oriented, torch.zeros(len(oriented)), name).weight.detach()
        return result.T if transposed else result

    def merged_bias(self, module: str, bias: torch.Tensor, name: str) -> torch.Tensor:
        return self._merged_layer(
            module, torch.zeros(len(bias), self._inputs(module)), bias, name
        ).bias.detach()

    def _inputs(self, module: str) -> int:
        """Any number of inputs with which the module's tensors fit: the bias does not depend on it."""
        shape = self.reader.about(self.updates[module]["ia3_l"]).shape
        return shape[1] if shape[0] == 1 else 1

    def _merged_layer(self, module: str, weight: torch.Tensor, bias: torch.Tensor, name: str) -> Any:
        """The linear layer with the adapter merged by PEFT. weight: float32 [out, in]; bias: float32 [out]."""
        plain = nn.Linear(weight.shape[1], weight.shape[0])
        plain.weight.data, plain.bias.data = weight.float().contiguous().clone(), bias.float().clone()
        try:
            layer = self._layer(module, plain)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the adapter at {self.url} does not fit its base: {module} with {name} of the shape {tuple(weight.shape)}: "
                f"{' '.join(str(error).split())[:200]}",
                hint="the base must be the model that the adapter was trained on",
            ) from error
        layer.merge()
        return layer.get_base_layer()

    def _layer(self, module: str, plain: nn.Linear) -> Any:
        """PEFT's layer with the adapter around a linear layer."""
        from peft import get_peft_model
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils.peft_types import PeftType

        tensors = self.updates[module]
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.kind.peft_type)]
        settings = {key: value for key, value in self.config.items() if key in kind.__dataclass_fields__}
        for key, pattern in (("r", "rank_pattern"), ("alpha", "alpha_pattern")):
            if key in settings and settings.get(pattern):
                settings |= {key: matching(settings[pattern], module, settings[key]), pattern: {}}
        settings |= {"target_modules": ["layer"], "modules_to_save": None, "exclude_modules": None}
        settings |= {
            "layers_to_transform": None,
            "layers_pattern": None,
            "inference_mode": False,
            "task_type": None,
        }
        if self.kind.peft_type == "IA3":
            scales_inputs = self.reader.about(tensors["ia3_l"]).shape[0] == 1
            settings["feedforward_modules"] = ["layer"] if scales_inputs else []
        settings = {key: value for key, value in settings.items() if key in kind.__dataclass_fields__}
        alone = nn.Module()
        alone.layer = plain
        get_peft_model(alone, kind(**settings))  # type: ignore[arg-type]
        layer: Any = alone.layer
        expected = {name.replace(".default", ""): parameter for name, parameter in layer.named_parameters()}
        expected = {name: value for name, value in expected.items() if not name.startswith("base_layer.")}
        if expected.keys() != tensors.keys():
            raise ValueError(f"its tensors are {sorted(tensors)}, not {sorted(expected)}")
        with torch.no_grad():
            for name, parameter in expected.items():
                stored = self.reader.read(tensors[name]).float()
                if stored.shape != parameter.shape:
                    raise ValueError(
                        f"{name} has the shape {tuple(stored.shape)}, not {tuple(parameter.shape)}"
                    )
                parameter.copy_(stored)
        if self.kind.peft_type == "VERA":
            down, up = (self.reader.read(name).float() for name in _PROJECTIONS.values())
            layer.vera_A["default"] = down[:, : plain.in_features].contiguous()
            layer.vera_B["default"] = up[: plain.out_features].contiguous()
        return layer
