"""`python -m tailor.doctor.kernels`: try the kernels of the first GPU, and print what works as one line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch


def bf16(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise RuntimeError("the GPU computes it slowly, by emulation")
    a = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
    _require(float((a @ a)[0, 0]) == 64.0)


def flash_attention(device: torch.device) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 2, 128, 64, device=device, dtype=torch.bfloat16, requires_grad=True)  # B, heads, T, D
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    _require(q.grad is not None and bool(q.grad.isfinite().all()))


def nf4(device: torch.device) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(128, 128, device=device, dtype=torch.bfloat16)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    _require(float((dequantize_4bit(packed, state) - weight).abs().mean()) < 0.2)


def adamw_8bit(device: torch.device) -> None:
    from bitsandbytes.optim import AdamW8bit

    weight = torch.nn.Parameter(torch.ones(8192, device=device))
    optimizer = AdamW8bit([weight], lr=1e-2)
    weight.sum().backward()
    optimizer.step()
    _require(bool((weight < 1).all()))


KERNELS: dict[str, Callable[[torch.device], None]] = {
    "bf16": bf16,
    "flash attention": flash_attention,
    "4-bit weights (nf4)": nf4,
    "8-bit optimizer": adamw_8bit,
}


def _require(condition: bool) -> None:
    if not condition:
        raise RuntimeError("a wrong result")


def report() -> dict[str, Any]:
    """devices: name, memory and free memory in bytes; kernels: name -> why it does not work, or empty."""
    found: dict[str, Any] = {"torch": torch.__version__, "error": "", "devices": [], "kernels": {}}
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            free, memory = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            found["devices"].append({"name": name, "memory": memory, "free": free})
    except Exception as error:  # a driver that does not fit torch raises several types
        found["error"] = _first_line(error)
        return found
    for name, kernel in KERNELS.items() if found["devices"] else ():
        try:
            kernel(torch.device("cuda", 0))
            found["kernels"][name] = ""
        except Exception as error:
            found["kernels"][name] = _first_line(error)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    json.dump(report(), sys.stdout)
    print()
