"""Conversions without pandas give what pyarrow's own give, also for slices and empty columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tailor.data.arrow import bits_to_arrow, bits_to_numpy, to_arrow, to_numpy


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32])
def test_numbers(size: int, dtype: type) -> None:
    values = np.random.default_rng(size).integers(0, 200, size=2 * size)[::2]
    column = to_arrow(values, dtype)
    assert column.equals(pa.array(values.astype(dtype)))
    for start in range(min(size, 3) + 1):
        assert np.array_equal(to_numpy(column[start:]), values[start:])
    assert to_numpy(column).dtype == dtype


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_bits(size: int) -> None:
    values = np.random.default_rng(size).integers(0, 2, size=size).astype(bool)
    column = bits_to_arrow(values)
    assert column.equals(pa.array(values))
    for start in range(min(size, 9) + 1):
        assert np.array_equal(bits_to_numpy(column[start:]), values[start:])


def test_a_column_with_nulls_is_refused() -> None:
    with pytest.raises(pa.ArrowException):
        to_numpy(pa.array([1, None], pa.int32()))
