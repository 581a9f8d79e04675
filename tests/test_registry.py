"""Names that other packages register."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.errors import ExtensionError
from tailor.registry import Registry
from tests.helpers.extensions import make_distribution

BUILTIN = {"square": "math:sqrt"}


@pytest.fixture
def registry() -> Registry[object]:
    return Registry("tailor.toys", BUILTIN)


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str = "X = 1\n", **names: str
) -> None:
    module = f"{name}_module"
    points = {key: f"{module}:{attribute}" for key, attribute in names.items()}
    make_distribution(folder / name, name, {f"{module}.py": code}, {"tailor.toys": points})
    monkeypatch.syspath_prepend(str(folder / name))


def test_builtin_names_need_no_package(registry: Registry[object]) -> None:
    assert registry.names() == ("square",)
    assert registry.get("square")(4.0) == 2.0  # type: ignore[operator]
    assert "round" not in registry


def test_another_package_adds_a_name(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "outside", round="X")
    assert registry.names() == ("square", "round")
    assert "round" in registry
    assert registry.get("round") == 1


def test_the_error_names_the_package_that_cannot_be_loaded(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "broken", code="import no_such_module\n", round="X")
    with pytest.raises(ExtensionError, match=r"round of the package broken cannot be loaded.*no_such_module"):
        registry.get("round")


@pytest.mark.parametrize(("other", "name"), [(None, "square"), ("second", "round")])
def test_a_name_cannot_be_registered_twice(
    registry: Registry[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str | None,
    name: str,
) -> None:
    install(monkeypatch, tmp_path, "first", **{name: "X"})
    if other is not None:
        install(monkeypatch, tmp_path, other, **{name: "X"})
    with pytest.raises(ExtensionError, match=rf"registers the name {name}, which .* uses already"):
        registry.names()
