"""Numpy arrays as Arrow arrays and back, without copies. pyarrow's own conversions import pandas: 0.2 CPU seconds per process."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def to_arrow(values: np.ndarray, dtype: type) -> pa.Array:
    """Numbers [n] as an Arrow array of a numpy type that is not bool. ValueError for one that an integer type cannot hold."""
    stored: np.ndarray = np.ascontiguousarray(values, dtype)
    whole = stored.dtype.kind in "iu" and stored.dtype != values.dtype
    if whole and not np.array_equal(stored, values):  # numpy wraps around without an error
        raise ValueError(f"a value does not fit into {stored.dtype}")
    return pa.Array.from_buffers(pa.from_numpy_dtype(stored.dtype), len(stored), [None, pa.py_buffer(stored)])


def bits_to_arrow(values: np.ndarray) -> pa.Array:
    """bool[n] as an Arrow array."""
    packed = np.packbits(values.astype(np.bool_), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def to_numpy(column: pa.Array) -> np.ndarray:
    """The numbers [n] of a column without nulls, in its own memory."""
    return np.from_dlpack(column)


def bits_to_numpy(column: pa.Array) -> np.ndarray:
    """bool[n] of a column without nulls."""
    stored = np.frombuffer(column.buffers()[1], np.uint8)
    bits: np.ndarray = np.unpackbits(stored, bitorder="little")[column.offset :][: len(column)].view(np.bool_)
    return bits
