"""Access to a worker's shards in DeepSpeed's ZeRO optimizers, through private attributes of DeepSpeed 0.19."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
from torch import nn


def set_group_timeout(timeout: timedelta) -> None:
    """Give `timeout` to the process groups that DeepSpeed makes from now on.

    It makes its own groups, also of all workers, which do not inherit the default group's timeout.
    """
    from deepspeed.comm import comm

    comm.cdb.new_group = lambda ranks: torch.distributed.new_group(list(ranks), timeout=timeout)


@contextmanager
def without_broadcast() -> Iterator[None]:
    """DeepSpeed's engine would broadcast every weight when it is made, and fails on the placeholders of quantized experts."""
    from deepspeed import DeepSpeedEngine

    with mock.patch.object(DeepSpeedEngine, "_broadcast_model", return_value=None):
        yield


class ZeroShards(ABC):
    """A worker's float32 weights, optimizer states and gradients in one of DeepSpeed's ZeRO optimizers."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def states(self) -> list[dict[str, Any]]:
        """The optimizer state of each flattened parameter group; empty before the first step."""
        return [
            self._zero.optimizer.state[flat] for flat in self.flat() if flat in self._zero.optimizer.state
        ]

    @abstractmethod
    def flat(self) -> list[torch.Tensor]:
        """This worker's float32 weights: one flattened tensor for each parameter group."""

    @abstractmethod
    def gradient_norm(self) -> torch.Tensor | float:
        """L2 norm over all workers; -1 if it is not finite."""

    @abstractmethod
    def clear_gradients(self) -> None:
        """Clear the gradients as DeepSpeed does when a step overflows."""

    @abstractmethod
    def after_step(self) -> None:
        """Called after a step of the engine: clear gradients that would leak into the next step."""

    @abstractmethod
    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        """(start, stop): the elements of the flattened weight that this worker has."""

    @abstractmethod
    def read(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        """This worker's elements of a weight or of its optimizer state `key`, float32; padding may follow them."""

    @abstractmethod
    def write(self, parameter: nn.Parameter, values: torch.Tensor, key: str | None) -> None:
        """Write this worker's elements of a weight or of its optimizer state `key`."""

    @abstractmethod
    def sync(self) -> None:
        """Copy the float32 weights to those of the forward pass."""


class _Stage1And2(ZeroShards):
    """Stages 1 and 2: the weights of a group are concatenated, and each worker has an equal piece of the result."""

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
        pass  # DeepSpeed clears the gradients of these stages itself

    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, 0
        fragment = mapping.lp_fragment_address
        return fragment.start, fragment.start + fragment.numel

    def read(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        flat = self.flat()[mapping.param_group_index]
        fragment = mapping.hp_fragment_address
        values = flat if key is None else self._zero.optimizer.state[flat][key]
        return values.detach().narrow(0, fragment.start, fragment.numel)

    def write(self, parameter: nn.Parameter, values: torch.Tensor, key: str | None) -> None:
        self.read(parameter, key).copy_(values)

    def sync(self) -> None:
        self._zero.update_lp_params()


class _Stage3(ZeroShards):
    """Stage 3: each weight is split into equal pieces, one for each worker; the last one is padded."""

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
        # The first micro-batch of a step overwrites the accumulated gradients of the weights that it uses; the others add
        # to them. A weight that only later micro-batches use (in GRITLM, the head) would add to the previous step's.
        self._zero.grad_partitions_flat_buffer.zero_()

    def bounds(self, parameter: nn.Parameter) -> tuple[int, int]:
        sharded: Any = parameter
        size = sharded.partition_numel()
        start = size * torch.distributed.get_rank()
        return min(start, sharded.ds_numel), min(start + size, sharded.ds_numel)

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
        """Gather the weights below DeepSpeed's size limit, which every worker keeps unsharded between steps."""
        if kept := self._zero.persistent_parameters:
            kept[0].all_gather(kept)


def shards_of(engine: Any, stage: int) -> ZeroShards:
    """The shards of an engine's optimizer. stage: 1, 2 or 3."""
    zero = engine.optimizer
    expected = "DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "DeepSpeedZeroOptimizer"
    assert type(zero).__name__ == expected, f"{type(zero).__name__}, not {expected}"
    return _Stage3(zero) if stage == 3 else _Stage1And2(zero)
