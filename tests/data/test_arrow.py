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


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2**15, np.int16),
        (-(2**15) - 1, np.int16),
        (256, np.uint8),
        (-1, np.uint8),
        (2**31, np.int32),
        (0.5, np.int32),
    ],
)
def test_a_number_that_does_not_fit_is_refused(value: float, dtype: type) -> None:
    """A shard would hold another number, such as the position of a piece of a long document."""
    with pytest.raises(ValueError, match=f"does not fit into {np.dtype(dtype)}"):
        to_arrow(np.array([0, value]), dtype)


def test_columns_cannot_be_written_to() -> None:
    """They are memory of the file, in which a write ends the process."""
    with pytest.raises(ValueError, match="read-only"):
        to_numpy(pa.array([1, 2], pa.int32()))[0] = 3


def test_a_column_with_nulls_is_refused() -> None:
    with pytest.raises(pa.ArrowException):
        to_numpy(pa.array([1, None], pa.int32()))
