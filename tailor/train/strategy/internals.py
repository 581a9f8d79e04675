"""Where DeepSpeed's ZeRO optimizers keep a worker's part of the float32 weights and of the optimizer's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class Shards(ABC):
    """One of DeepSpeed's ZeRO optimizers."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def states(self) -> list[dict[str, Any]]:
        """The optimizer's state of each flat group; none before its first step."""
        return [
            self._zero.optimizer.state[flat] for flat in self.flat() if flat in self._zero.optimizer.state
        ]

    @abstractmethod
    def flat(self) -> list[torch.Tensor]:
        """This worker's float32 weights, end to end, group by group."""

    @abstractmethod
    def gradient_norm(self) -> torch.Tensor | float:
        """Over all workers; -1 where it is no number."""

    @abstractmethod
    def clear_gradients(self) -> None:
        """What DeepSpeed itself does when a step overflows."""

    @abstractmethod
    def after_step(self) -> None:
        """After a step of the engine: nothing of this step's gradients reaches the next."""

    @abstractmethod
    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Which elements of a weight this worker has, flattened."""

    @abstractmethod
    def read(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        """This worker's elements of a weight or of its state, float32, maybe with padding behind."""

    @abstractmethod
    def write(self, parameter: nn.Parameter, values: torch.Tensor, key: str | None) -> None:
        """The other way."""

    @abstractmethod
    def sync(self) -> None:
        """Bring the weights that are computed with in line with the float32 ones."""


class _Stage1And2(Shards):
    """Stages 1 and 2: a group's weights stand end to end, and each worker has an equal piece of that."""

    def flat(self) -> list[torch.Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    def gradient_norm(self) -> torch.Tensor | float:
        norm: torch.Tensor | float = self._zero.scaled_global_norm()
        return norm

    def clear_gradients(self) -> None:
        zero = self._zero
        zero.micro_step_id = -1
        zero.zero_grad(set_to_none=True)
        zero._release_preflattened_grad_buffers()
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()
        else:
            for group in zero.averaged_gradients:
                zero.averaged_gradients[group] = None
                zero.all_grad_tensors[group] = None

    def after_step(self) -> None:
        pass  # the sums begin anew by themselves

    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, 0
        at = mapping.lp_fragment_address
        return at.start, at.start + at.numel

    def read(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        flat = self.flat()[mapping.param_group_index]
        at = mapping.hp_fragment_address
        values = flat if key is None else self._zero.optimizer.state[flat][key]
        return values.detach().narrow(0, at.start, at.numel)

    def write(self, parameter: nn.Parameter, values: torch.Tensor, key: str | None) -> None:
        self.read(parameter, key).copy_(values)

    def sync(self) -> None:
        self._zero.update_lp_params()


class _Stage3(Shards):
    """Stage 3: each weight is cut into equal pieces, one for each worker, the last padded."""

    def flat(self) -> list[torch.Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def gradient_norm(self) -> torch.Tensor | float:
        from deepspeed.runtime.zero.stage3 import combine_grad_norm_groups

        norm: torch.Tensor | float = combine_grad_norm_groups(self._zero._get_norm_groups())
        return norm

    def clear_gradients(self) -> None:
        self._zero._pre_step()
        self._zero._partition_all_parameters()
        self._zero._overflow_clean_up(1.0)
        self._gather_persistent()
        self.after_step()

    def after_step(self) -> None:
        # A step's first micro-batch overwrites the sums, for the weights that it reaches, and the others add to them:
        # a weight that only later ones reach, as the head beside texts to embed, would add to the last step's.
        self._zero.grad_partitions_flat_buffer.zero_()

    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        held: Any = parameter
        size = held.partition_numel()
        start = size * torch.distributed.get_rank()
        return min(start, held.ds_numel), min(start + size, held.ds_numel)

    def read(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        values: torch.Tensor = self._zero.get_local_fp32_param(parameter, key)
        return values.detach()

    def write(self, parameter: nn.Parameter, values: torch.Tensor, key: str | None) -> None:
        padded = torch.zeros(parameter.ds_tensor.numel())  # type: ignore[attr-defined]
        padded[: len(values)] = values
        self._zero.set_local_hp_param(padded, parameter, key)

    def sync(self) -> None:
        self._zero._partition_all_parameters()
        for group in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)

    def _gather_persistent(self) -> None:
        """Weights too small to be worth cutting are whole on every worker between steps."""
        if kept := self._zero.persistent_parameters:
            kept[0].all_gather(kept)


def shards_of(engine: Any, stage: int) -> Shards:
    """The engine's optimizer, which must be the one of its stage."""
    zero = engine.optimizer
    expected = "DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "DeepSpeedZeroOptimizer"
    assert type(zero).__name__ == expected, f"{type(zero).__name__}, not {expected}"
    return _Stage3(zero) if stage == 3 else _Stage1And2(zero)
