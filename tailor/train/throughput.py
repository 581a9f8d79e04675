"""Speed and memory of a step: peak memory and model FLOPs utilization (MFU)."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from tailor.plan.devices import peak_flops

CLEAR = Path("/proc/self/clear_refs")
"""Writing 5 resets the peak resident memory of the process (Linux, proc(5))."""


def start_peak(device: torch.device) -> None:
    """Reset `peak_memory_bytes` to the memory in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed: the peak is then that since the process started
            CLEAR.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since `start_peak`: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def release(device: torch.device) -> None:
    """Release cached GPU memory before training switches to evaluation or back, because tensor sizes change (fragmentation)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def model_flops_utilization(
    device: torch.device, *, parameters: int, trained_fully: bool, tokens: int, seconds: float
) -> float | None:
    """Model FLOPs utilization: the model's FLOP/s as a fraction of the GPU's peak. None if the peak is unknown.

    6 FLOP per parameter and token if every weight has a gradient, 4 if the base is frozen (PaLM, arXiv 2204.02311, appendix B,
    without the attention term). parameters: those that a token uses, without the experts it is not routed to. tokens: per GPU.
    """
    if device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    if peak is None:
        return None
    return (6 if trained_fully else 4) * parameters * tokens / seconds / peak
