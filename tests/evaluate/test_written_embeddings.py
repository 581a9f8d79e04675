"""Files that `tailor embed` wrote are checked as a whole before their numbers are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor.errors import DataError, TailorError
from tailor.evaluate.retrieval.precision import Coding
from tailor.evaluate.written_embeddings import find_written

ABOUT: dict[str, Any] = {"model": "m", "instruction": None, "columns": ["text"]}
INT8 = {**ABOUT, "dtype": "int8", "dimension": 2, "ranges": [[-1.0, 0.0], [1.0, 0.5]]}


def written(path: Path, vectors: Any = ((0.5, 1.0), (0.0, -1.0)), **changes: Any) -> Path:
    """changes: columns, or `about`, the metadata."""
    about = changes.pop("about", ABOUT)
    numbers = [[round(number) for number in one] for one in vectors] if "dtype" in about else vectors
    kind = {"int8": pa.int8(), "ubinary": pa.uint8()}.get(about.get("dtype", ""), pa.float32())
    width = len(vectors[0]) if len(vectors) else 2
    columns = {
        "row": pa.array(range(1, len(vectors) + 1), pa.int64()),
        "embedding": pa.array([list(one) for one in numbers], pa.list_(kind, width)),
        **changes,
    }
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table.replace_schema_metadata({"tailor": json.dumps(about)}), path)
    return path


def read(path: Path) -> np.ndarray:
    found = find_written(str(path))
    assert found is not None
    return found.vectors(found.table())


def test_whole_files_are_read(tmp_path: Path) -> None:
    """The control of all errors below."""
    assert read(written(tmp_path / "a.parquet")).tolist() == [[0.5, 1.0], [0.0, -1.0]]
    coding = Coding.of(INT8)
    assert coding is not None
    stored = coding.encode(np.array([[-1.0, 0.5], [0.25, 0.25]], np.float32))
    found = read(written(tmp_path / "b.parquet", stored.tolist(), about=INT8))
    assert np.abs(found - [[-1.0, 0.5], [0.25, 0.25]]).max() <= 1 / 255
    bits = {**ABOUT, "dtype": "ubinary", "dimension": 9}
    assert read(written(tmp_path / "c.parquet", [[129, 128]], about=bits)).tolist() == [
        [1, -1, -1, -1, -1, -1, -1, 1, 1]
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": []}, "has no rows"),
        ({"row": None}, "has no column row"),
        ({"embedding": None}, "has no column embedding"),
        ({"row": pa.array(["../x", "y"])}, "has no column row of the type"),
        ({"row": pa.array([None, 1], pa.int64())}, "column row has rows without a value"),
        ({"row": pa.array([0, 1], pa.int64())}, "has numbers below 1"),
        ({"embedding": pa.array(["a", "b"])}, "has no column embedding of the type"),
        ({"embedding": pa.array([None, [1.0, 2.0]], pa.list_(pa.float32(), 2))}, "without a value"),
        ({"vectors": [[float("nan"), 1.0]]}, "NaN or infinite"),
        ({"about": {}}, "it has no model"),
        ({"about": {**ABOUT, "model": 5}}, "model: input should be a valid string"),
        ({"about": {**ABOUT, "dtype": "int4"}}, "dtype: input should be 'int8' or 'ubinary'"),
        ({"about": {**INT8, "dimension": 3}}, "ranges are not those of its dimensions"),
        ({"about": {**INT8, "ranges": [[0.0, 0.0]]}}, "ranges are not those of its dimensions"),
        ({"about": {**INT8, "ranges": [[1.0, 1.0], [0.0, 0.0]]}}, "end before they begin"),
        ({"about": {**INT8, "ranges": [[1e39, 0.0], [1e39, 1.0]]}}, "are not finite"),
        ({"about": {**INT8, "ranges": "x"}}, "ranges: input should be a valid array"),
        (
            {"vectors": [[1, 2]], "about": {**ABOUT, "dtype": "ubinary", "dimension": 2}},
            "do not have 2 dimensions",
        ),
    ],
)
def test_damage_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.parquet", **changes)
    with pytest.raises(TailorError) as caught:
        read(path)
    assert message in caught.value.message
    assert caught.value.hint


def test_other_files_are_not_taken_for_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "own.parquet")
    assert find_written(str(tmp_path / "own.parquet")) is None
    assert find_written(str(tmp_path / "nothing.parquet")) is None
    path = written(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert find_written(str(path)) is None


def test_ranges_of_another_dimension_are_refused() -> None:
    coding = Coding.of(INT8)
    assert coding is not None
    coding.require_dimension(None)
    coding.require_dimension(2)
    with pytest.raises(DataError, match="have 2 dimensions, and these 4"):
        coding.require_dimension(4)
