"""Releases the pages of weight files that no weight of a loaded model uses.

transformers maps the files into memory. A weight that it loads as it is stored stays a view of the mapping. A weight that it
converts (experts that it stacks, weights that it casts or quantizes) is read from the mapping and gets memory of its own. As
long as a file has one view, the pages that were read for the others stay in the memory of the process.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

from torch import nn

MAPS = Path("/proc/self/maps")
"""The memory mappings of this process (Linux, proc(5))."""


def release_unused(network: nn.Module) -> None:
    """Release the pages between the views of each mapped file. The file stays mapped: a page that is read again is loaded again."""
    weights = sorted(_memory(network))
    for start, end in _mapped_files():
        inside = [weight for weight in weights if start <= weight[0] < end]
        if not inside:  # the file of a library
            continue
        for first, last in inside:
            _release(start, first)
            start = max(start, last)
        _release(start, end)


def _memory(network: nn.Module) -> Iterator[tuple[int, int]]:
    """The addresses from which and up to which each weight in host memory is stored."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _mapped_files() -> Iterator[tuple[int, int]]:
    """The addresses from which and up to which each file is mapped. None where the system has no `MAPS`."""
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)


def _release(start: int, end: int) -> None:
    """Release the whole pages between two addresses."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
