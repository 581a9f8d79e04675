"""Devices by name: peak arithmetic and memory. For MFU, and for plans for machines that are not here (`tailor plan --device`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailor.errors import ScaleError
from tailor.plan.facts import Hardware

PEAK_FLOPS: tuple[tuple[frozenset[str], float], ...] = tuple(
    (frozenset(words.split()), flops)
    for words, flops in (
        ("B200", 2250e12),
        ("GH200", 989e12),
        ("H200 NVL", 836e12),
        ("H200", 989e12),
        ("H100 PCIE", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("A100", 312e12),
        ("L40S", 362e12),
        ("L40", 181e12),
        ("L4", 121e12),
        ("A10G", 70e12),
        ("A10", 125e12),
        ("RTX 4090", 165e12),
        ("RTX 3090", 71e12),
        ("RTX A6000", 155e12),
        ("RTX 6000 ADA", 364e12),
    )
)
"""Dense bf16 peak from the vendor's data sheet, in FLOP/s, by words of the device's name. The first entry that fits counts."""
_OTHER = frozenset(("MIG", "LAPTOP", "MAX", "D"))
"""Words of devices with another peak than their namesake: parts of a GPU, laptops, Max-Q, RTX 4090 D."""


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak of a GPU by the name that CUDA reports, in FLOP/s; None if it is unknown."""
    words = set(re.split(r"[\s_-]+", name.upper()))
    if words & _OTHER:
        return None
    return next((flops for wanted, flops in PEAK_FLOPS if wanted <= words), None)


@dataclass(frozen=True)
class Device:
    """A device to plan for."""

    name: str
    hardware: Hardware
    flops: float
    """Dense peak in 16-bit precision, in FLOP/s."""
    flops_32: float
    """Peak in float32, in FLOP/s."""
    utilization: float
    """Fraction of the peak that training reaches, with the arithmetic of activation checkpointing."""
    bandwidth: float
    """Bytes per second that a worker exchanges with the others."""

    def flops_of(self, precision: str) -> float:
        """Peak for `train.precision`."""
        return self.flops_32 if precision == "fp32" else self.flops


_GIB = 2**30
_NVLINK, _PCIE = 200e9, 15e9
_GPUS = {
    "h100-80": ("H100", 79.2, 67e12, 0.40, _NVLINK),
    "a100-80": ("A100", 79.2, 19.5e12, 0.50, _NVLINK),
    "h200": ("H200", 139.7, 67e12, 0.40, _NVLINK),
    "b200": ("B200", 178.4, 80e12, 0.35, _NVLINK),
    "l40s": ("L40S", 44.4, 91.6e12, 0.45, _PCIE),
    "4090": ("RTX 4090", 23.5, 82.6e12, 0.55, _PCIE),
}
"""name -> (name in `PEAK_FLOPS`, memory that CUDA reports in GiB, float32 peak, utilization, bandwidth)."""
NAMES = (*_GPUS, "cpu-N")
CORE_FLOPS = 70e9
"""float32 peak of a server core: two vector units of 8 float32 at 2.2 GHz (AVX2), each a multiplication and an addition."""
CORE_BYTES = 4 * _GIB
"""Memory per core of a cloud's general-purpose machines."""


def device(name: str, workers: int = 1) -> Device:
    """A device by its name in `NAMES`: a GPU, or a worker's share of one machine with N cores and 4 GiB of memory for each.

    workers: of the machine, if it has no GPU. ScaleError when the name is unknown.
    """
    if (found := _GPUS.get(name.lower())) is not None:
        known, memory, flops_32, utilization, bandwidth = found
        flops = peak_flops(known)
        assert flops is not None
        hardware = Hardware("cuda", int(memory * _GIB), bf16=True)
        return Device(name.lower(), hardware, flops, flops_32, utilization, bandwidth)
    cores = re.fullmatch(r"cpu-([1-9]\d{0,3})", name.lower())
    if cores is None:
        raise ScaleError(
            f"--device {name}: unknown device", hint=f"choose one of {', '.join(NAMES)} (N cores, as cpu-24)"
        )
    share = int(cores[1]) / workers
    hardware = Hardware("cpu", int(share * CORE_BYTES), bf16=False)
    return Device(name.lower(), hardware, share * CORE_FLOPS, share * CORE_FLOPS, 0.35, 1e9)
