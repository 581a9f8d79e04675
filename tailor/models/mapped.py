"""Releases the pages of weight files that no weight of a loaded model uses.

transformers maps the files into memory. A weight that it loads as it is stored stays a view of the mapping. A weight that it
converts (experts that it stacks, weights that it casts or quantizes) is read from the mapping and gets memory of its own. As
long as a file has one view, the pages that were read for the others stay in the memory of the process.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch import nn

MAPS = Path("/proc/self/smaps")
"""The memory mappings of this process with their sizes (Linux, proc(5))."""
_START = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")
_OWN = (b"Anonymous:", b"Swap:")
"""The sizes of the pages that the process wrote to. The file does not have what they hold."""


def release_unused(network: nn.Module) -> None:
    """Release the pages between the views of each mapped file. The file stays mapped: a page that is read again is loaded again.

    A file of which a page was written to is left as it is: that page is the only copy of what it holds.
    """
    weights = sorted(_memory(network))
    for start, end in _mapped_files():
        inside = [(first, last) for first, last in weights if first < end and start < last]
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
            with suppress(RuntimeError):  # a tensor that wraps others has no address
                yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _mapped_files() -> Iterator[tuple[int, int]]:
    """The addresses from which and up to which each file is mapped, without files of which the process wrote to a page.

    None where the system has no `MAPS`. Its lines are bytes, as names of files are.
    """
    mapped: tuple[int, int] | None = None
    own: set[bytes] = set()
    for line in (*MAPS.read_bytes().split(b"\n"), b"0-0 - - - 0") if MAPS.exists() else ():
        if found := _START.match(line):
            if mapped is not None and own == {b"0"}:
                yield mapped
            start, end, inode = found.groups()
            mapped, own = (int(start, 16), int(end, 16)) if int(inode) else None, set()
        elif line.startswith(_OWN):
            own.add(line.split()[1])


def _release(start: int, end: int) -> None:
    """Release the whole pages between two addresses."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
