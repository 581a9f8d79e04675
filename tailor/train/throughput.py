"""Speed and memory of a step."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

CLEAR = Path("/proc/self/clear_refs")
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 peaks from the makers' data sheets, in FLOP/s, by a part of the device's name."""


def start_peak(device: torch.device) -> None:
    """Let `peak_memory_bytes` begin anew, from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed: then the peak is that of the whole life
            CLEAR.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since `start_peak`: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def release(device: torch.device) -> None:
    """Give back what the allocator keeps for tensors of the sizes that were needed so far: others will be needed now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def model_flops_utilization(
    device: torch.device, *, parameters: int, trained_fully: bool, tokens: int, seconds: float
) -> float | None:
    """Share of the GPU's peak that the model's own arithmetic takes; None where the peak is unknown.

    6 FLOP per parameter and token when every weight has a gradient, 4 when the base is frozen
    (PaLM, arXiv 2204.02311, appendix B, without the attention term).
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    if peak is None:
        return None
    return (6 if trained_fully else 4) * parameters * tokens / seconds / peak
