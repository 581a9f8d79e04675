"""Embeddings of one byte or one bit per dimension: the numbers of sentence-transformers, and what a search keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from tailor.errors import DataError
from tailor.evaluate.retrieval.precision import Coding, Ranges, from_int8, to_int8, to_ubinary


def embeddings(count: int = 300, dimension: int = 20, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    vectors[:, 3] = 0.25  # a dimension without a range
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)


def test_the_numbers_are_those_of_sentence_transformers() -> None:
    calibration, others = embeddings(), 1.5 * embeddings(seed=1)
    ranges = Ranges.of(calibration)
    for vectors in (calibration, others):
        theirs = quantize_embeddings(vectors, "int8", calibration_embeddings=calibration)
        assert np.array_equal(to_int8(vectors, ranges), theirs)
        assert np.array_equal(to_ubinary(vectors), quantize_embeddings(vectors, "ubinary"))
    halves = Ranges.of(calibration[:100]).joined(Ranges.of(calibration[100:]))
    assert np.array_equal(halves.low, ranges.low)
    assert np.array_equal(halves.high, ranges.high)
    assert not np.array_equal(to_int8(others, Ranges.of(others)), to_int8(others, ranges)), "the control"


def test_decoded_numbers_are_within_half_a_step() -> None:
    vectors = embeddings()
    ranges = Ranges.of(vectors)
    error = np.abs(from_int8(to_int8(vectors, ranges), ranges) - vectors)
    assert (error <= ranges.steps * 0.51 + 1e-6)[:, ranges.low < ranges.high].all()


@pytest.mark.parametrize("name", ["int8", "ubinary"])
def test_a_coding_is_read_back_from_a_files_metadata(name: Any) -> None:
    vectors = embeddings()
    coding = Coding(name, Ranges.of(vectors) if name == "int8" else None)
    about = coding.about(20)
    again = Coding.of(about)
    assert again is not None
    stored = coding.encode(vectors)
    assert np.array_equal(again.decode(stored, about["dimension"]), coding.decode(stored, 20))
    assert stored.nbytes == len(vectors) * (20 if name == "int8" else 3)
    assert Coding.of({"model": "x"}) is None
    if name == "int8":
        with pytest.raises(DataError, match="--ranges: its embeddings have 20 dimensions, and these 8"):
            coding.encode(vectors[:, :8])
