"""Names that other packages register."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tailor.errors import ExtensionError
from tailor.registry import Registry, check_section
from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.sft import Sft
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


@pytest.mark.parametrize(
    ("other", "name", "owner"), [(None, "square", "tailor itself"), ("second", "round", "(first|second)")]
)
def test_a_name_cannot_be_registered_twice(
    registry: Registry[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str | None,
    name: str,
    owner: str,
) -> None:
    install(monkeypatch, tmp_path, "first", **{name: "X"})
    if other is not None:
        install(monkeypatch, tmp_path, other, **{name: "X"})
    with pytest.raises(ExtensionError, match=rf"registers the name {name}, which {owner} uses already"):
        registry.names()


class Nameless(MethodSection):
    """A section without a key `name` of its own."""

    implementation = "math:sqrt"
    reads = ()


class Unfinished(MethodSection):
    """A section without its implementation."""

    name: Literal["unfinished"]


@pytest.mark.parametrize(
    ("name", "found", "text"),
    [
        ("sft", 3, "sft is 3, which is not a subclass of tailor.spec.methods.base.MethodSection"),
        ("sft", int, "which is not a subclass of tailor.spec.methods.base.MethodSection"),
        ("other", Sft, 'whose key `name` does not have the type Literal\\["other"\\]'),
        ("nameless", Nameless, 'whose key `name` does not have the type Literal\\["nameless"\\]'),
        ("unfinished", Unfinished, "which has no class variable implementation"),
    ],
)
def test_a_section_that_cannot_be_used_is_named(name: str, found: object, text: str) -> None:
    with pytest.raises(ExtensionError, match=text) as caught:
        check_section("tailor.methods", name, found, MethodSection, ("implementation", "reads"))
    assert caught.value.hint
    check_section("tailor.methods", "sft", Sft, MethodSection, ("implementation", "reads"))  # the control


def test_a_package_that_ends_the_process_is_named(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "ending", code="raise SystemExit(3)\n", round="X")
    with pytest.raises(ExtensionError, match="round of the package ending cannot be loaded"):
        registry.get("round")
