"""Peaks by the names that CUDA reports, and machines to plan for."""

from __future__ import annotations

import pytest

from tailor.errors import ScaleError
from tailor.plan.devices import device, peak_flops

NAMES = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA A1000": None,
    "NVIDIA L400": None,
    "Tesla P4": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_peak_of_a_name(name: str) -> None:
    assert peak_flops(name) == NAMES[name]


def test_machines_of_cpus_share_their_cores_and_memory() -> None:
    whole, half = device("cpu-24"), device("CPU-24", workers=2)
    assert whole.hardware.memory_bytes == 96 * 2**30 == 2 * half.hardware.memory_bytes
    assert (whole.hardware.device, whole.flops) == ("cpu", 2 * half.flops)
    assert device("H200").hardware.memory_bytes > device("h100-80").hardware.memory_bytes


@pytest.mark.parametrize("name", ["h300", "cpu", "cpu-0", "cpu-x", "cpu-99999", ""])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(ScaleError, match=r"unknown device.*choose one of h100-80, a100-80"):
        device(name)
