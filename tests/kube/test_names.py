from __future__ import annotations

import pytest

from tailor.kube import names


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("1", 1),
        ("500Mi", 500 << 20),
        ("1.5G", 1_500_000_000),
        ("64Gi", 64 << 30),
        ("2k", 2000),
        *((text, None) for text in ("", "0", "0Gi", "16GB", "5 Gi", "-1", "1e3", "Gi", "1.Gi", "٣Gi")),
        ("9" * 5000, None),  # more digits than Python converts
        ("1." + "9" * 5000 + "Gi", None),
    ],
)
def test_quantities(quantity: str, size: int | None) -> None:
    assert names.bytes_of(quantity) == size


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("my_Recipe", "my-recipe"),
        ("llama-3.2", "llama-3-2"),
        ("7b", "tailor-7b"),
        ("--", "tailor"),
        ("ä", "tailor"),
        ("x" * 60, "x" * 47),
        ("x" * 46 + "-y", "x" * 46),
    ],
)
def test_names_from_files(stem: str, name: str) -> None:
    assert names.name_from(stem) == name
    assert names.NAME.fullmatch(name)
    assert len(name) <= names.MAX_NAME_LENGTH


def test_labels() -> None:
    for key in ("a", "a.b/c_D-1", "x" * 63):
        assert names.is_qualified(key)
    for key in ("", "a/", "/a", "a/b/c", "A/b", "-a", "x" * 64):
        assert not names.is_qualified(key)
    assert names.is_label_value("")
    assert not names.is_label_value("a b")
